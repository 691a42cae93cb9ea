"""Requests from several threads, answered together: the LLM's rows in one batch, media of a kind in another.

`nextgpt.pipeline` stands on it. `answers` reads a request and tells it as events; `rows` go through `language`, which emits
their tokens (`segments`, `caches`, `sampling`); `media` has decoders make what their runs call for. They talk by `messages`.
"""
