"""KV caches of several answers as one: joined by padding on the left, and taken apart again.

An answer's own columns always stand at the right end of its row, without a gap, so that distances between its tokens are
those of its answer alone. An adapter's virtual tokens stay at the left end; the padding comes after them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def joining_kind(cache: Cache, text_config: PreTrainedConfig, virtual_tokens: int) -> tuple | None:
    """What caches must have in common to be joined; None where a cache cannot be joined at all.

    That is so of everything but plain keys and values (recurrent states, static, quantized and offloaded caches), of
    attention in chunks, which counts columns, and of virtual tokens that a sliding window leaves behind.
    """
    slides = getattr(text_config, "sliding_window", None) is not None
    in_chunks = getattr(text_config, "attention_chunk_size", None) is not None
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False) or in_chunks or (slides and virtual_tokens):
        return None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    if any(getattr(layer, "record_past", False) for layer in cache.layers):
        return None
    return tuple((type(layer), getattr(layer, "sliding_window", None), layer.is_initialized) for layer in cache.layers)


def take_rows(cache: Cache, rows: Sequence[int], length: int, virtual_tokens: int = 0) -> Cache:
    """A cache of its own that holds some rows of another, each with its last `length` columns and the virtual tokens."""
    taken = _copy(cache)
    for layer in filter(_is_filled, taken.layers):
        keep = torch.tensor(rows, device=layer.keys.device)
        width = min(length, _most(layer))
        layer.keys = _last_columns(layer.keys.index_select(0, keep), width, virtual_tokens)
        layer.values = _last_columns(layer.values.index_select(0, keep), width, virtual_tokens)
        _set_length(layer, length)
    return taken


def join_caches(caches: Sequence[Cache], virtual_tokens: int = 0) -> Cache:
    """One cache with the rows of all, as wide as the widest; they are of one `joining_kind`."""
    if len(caches) == 1:
        return caches[0]
    length = max(cache.get_seq_length() for cache in caches) - virtual_tokens
    joined = _copy(caches[0])
    for layer, *parts in zip(joined.layers, *(cache.layers for cache in caches), strict=True):
        if _is_filled(layer):
            width = min(length, _most(layer))
            layer.keys = torch.cat([_padded(part.keys, width, virtual_tokens) for part in parts])
            layer.values = torch.cat([_padded(part.values, width, virtual_tokens) for part in parts])
            _set_length(layer, length)
    return joined


def _copy(cache: Cache) -> Cache:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _is_filled(layer: Any) -> bool:
    """Some architectures share the cache of an earlier layer: theirs stays empty."""
    return layer.is_initialized and layer.keys.numel() > 0


def _most(layer: Any) -> int | float:
    """How many columns a layer keeps at most."""
    return layer.sliding_window - 1 if isinstance(layer, DynamicSlidingWindowLayer) else float("inf")


def _set_length(layer: Any, length: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):  # it counts what it has seen, not what it keeps
        layer.cumulative_length = length


def _last_columns(states: Tensor, width: int, virtual_tokens: int) -> Tensor:
    """`[rows, heads, columns, size]` → its virtual tokens and its last `width` columns."""
    start = states.shape[2] - width
    if start <= virtual_tokens:
        return states
    return torch.cat([states[:, :, :virtual_tokens], states[:, :, start:]], dim=2)


def _padded(states: Tensor, width: int, virtual_tokens: int) -> Tensor:
    """`[rows, heads, columns, size]` → `width` columns behind the virtual tokens, zeros where there were none."""
    rows, heads, columns, size = states.shape
    missing = width - (columns - virtual_tokens)
    if missing <= 0:
        return states
    zeros = states.new_zeros(rows, heads, missing, size)
    return torch.cat([states[:, :, :virtual_tokens], zeros, states[:, :, virtual_tokens:]], dim=2)
