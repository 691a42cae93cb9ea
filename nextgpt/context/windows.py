"""Caches of attention with a sliding window, which let go of what lies outside it."""

from __future__ import annotations

from transformers import Cache


def can_take_back(cache: Cache, tokens: int) -> bool:
    """Whether the last tokens can be taken off a cache; the windows before them may have been let go of."""
    slid = (getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window for layer in cache.layers)
    return not tokens or not any(slid)


def take_back(cache: Cache, tokens: int) -> bool:
    """Takes the last tokens off a cache; False, and nothing done, where that cannot be."""
    if not can_take_back(cache, tokens):
        return False
    if tokens:
        cache.crop(-tokens)
    return True
