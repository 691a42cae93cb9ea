"""Passes through an LLM with dynamic positions, whose frequencies depend on how long the conversation is.

Up to the original limit they are the LLM's own, and a KV cache serves as it always does. Beyond it every token changes them,
and with them all keys and all states above the first layer: the conversation is computed anew from its embeddings, which
the cache keeps for that. Rows of a batch have frequencies of their own, as each would have alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from nextgpt.adapters import Adapter, Pass, run
from nextgpt.context.windows import take_back
from nextgpt.errors import UserInputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EmbeddingsCache(DynamicCache):
    """The embeddings of a conversation, as a cache of one layer, beside the keys and values as long as these hold.

    Args:
        embeddings: `[batch, length, hidden]`; an adapter's virtual tokens stand before them as zeros.
        keys: the LLM's cache of the same tokens; None where the frequencies have changed since.
        limit: tokens up to which keys hold, virtual ones included.
    """

    def __init__(self, embeddings: Tensor, keys: Cache | None, limit: int):
        super().__init__()
        self.keys, self.limit = keys, limit
        self.append(embeddings)

    @property
    def embeddings(self) -> Tensor:
        """`[batch, length, hidden]`."""
        return self.layers[0].keys[:, 0]

    def append(self, embeddings: Tensor) -> None:
        """Takes the embeddings of the next tokens."""
        self.update(embeddings[:, None], embeddings[:, None, :, :0], 0)

    def holds(self, length: int) -> bool:
        """Whether what is kept can be gone on with to a conversation of so many tokens without computing it anew."""
        return self.keys is not None and length <= self.limit

    def crop(self, tokens_to_remove: int) -> None:
        """As of every cache."""
        super().crop(tokens_to_remove)
        if self.keys is not None and not take_back(self.keys, abs(tokens_to_remove)):
            self.keys = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """As of every cache."""
        super().reorder_cache(beam_idx)
        if self.keys is not None:
            self.keys.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As of every cache."""
        super().batch_repeat_interleave(repeats)
        if self.keys is not None:
            self.keys.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As of every cache."""
        super().batch_select_indices(indices)
        if self.keys is not None:
            self.keys.batch_select_indices(indices)


class DynamicPositions:
    """Runs an LLM with dynamic positions; a pass gives the same whatever came before it.

    Args:
        language_model: without peft's wrapper; its configuration is that of `as_built`.
        adapter: on it.
        bridge: the model's input projection.
    """

    def __init__(self, language_model: PreTrainedModel, adapter: Adapter | None, bridge: nn.Module | None = None):
        self.language_model, self.adapter, self.bridge = language_model, adapter, bridge
        self.limit = language_model.config.get_text_config().max_position_embeddings
        self.virtual_tokens = adapter.virtual_tokens if adapter else 0

    def run(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        *,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
    ) -> Pass:
        """As `nextgpt.adapters.run`. Positions are counted by the mask; a cache that is kept is an `EmbeddingsCache`."""
        past, new = self._past(cache), embeddings.shape[1]
        whole = embeddings if past is None else torch.cat([past.embeddings[:, self.virtual_tokens :], embeddings], dim=1)
        mask = embeddings.new_ones(whole.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        lengths = mask.sum(1) + self.virtual_tokens
        keeps = cache is not None or (self.language_model.config.use_cache if use_cache is None else use_cache)
        keys = None
        if int(lengths.max()) > self.limit:
            states = self._anew(whole, mask, positions, lengths)[:, -new:]
        else:
            keys = past.keys if past is not None else None
            if keys is not None:
                whole, positions = embeddings, positions[:, -new:]
            elif keeps:
                keys = DynamicCache(config=self.language_model.config.get_text_config(decoder=True))
            states, keys = self._pass(whole, mask, positions, keys, keeps)
            states = states[:, -new:]
        if not keeps:
            return Pass(states, None)
        if past is None:
            virtual = embeddings.new_zeros(len(embeddings), self.virtual_tokens, embeddings.shape[2])
            past = EmbeddingsCache(torch.cat([virtual, embeddings], dim=1), keys, self.limit)
        else:
            past.append(embeddings)
            past.keys = keys
        return Pass(states, past)

    def _past(self, cache: Cache | None) -> EmbeddingsCache | None:
        """The cache of what came before; None where nothing did."""
        if cache is None or isinstance(cache, EmbeddingsCache):
            return cache
        if type(cache) is not DynamicCache or cache.get_seq_length():
            raise UserInputError(
                f"dynamic positions need a cache that they have made themselves, got {type(cache).__name__}: leave "
                "cache_implementation and past_key_values out"
            )
        return None

    def _anew(self, embeddings: Tensor, mask: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        """States of all tokens, rows of one length together: their frequencies are the same."""
        states: Tensor | None = None
        effective = lengths.clamp(min=self.limit)
        for length in effective.unique():
            rows = (effective == length).nonzero().flatten()
            found, _ = self._pass(embeddings[rows], mask[rows], positions[rows], None, False)
            states = found.new_empty(len(embeddings), *found.shape[1:]) if states is None else states
            states = states.index_copy(0, rows, found)
        return states

    def _pass(self, embeddings: Tensor, mask: Tensor, positions: Tensor, keys: Cache | None, keeps: bool) -> Pass:
        for module in self._rotary():
            # transformers keeps the frequencies of the longest conversation so far: begin with the LLM's own each time.
            module.inv_freq, module.max_seq_len_cached = module.original_inv_freq, module.original_max_seq_len
        options = {"position_ids": positions, "cache": keys, "use_cache": keeps, "bridge": self.bridge}
        return run(self.language_model, self.adapter, embeddings, mask, **options)

    def _rotary(self) -> list[Any]:
        if not hasattr(self, "_found"):
            modules: list[nn.Module] = list(self.language_model.modules())
            self._found = [each for each in modules if hasattr(each, "original_inv_freq") and hasattr(each, "rope_type")]
        return self._found
