"""A conversation with its KV cache: what the next turn has in common with the last one is not computed again."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field

from transformers import DynamicCache

from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration


@dataclass
class Session:
    """Keeps the KV cache of one conversation between turns. Make one with `pipeline.new_session()`.

    Args:
        virtual_tokens: of the model's adapter; they stand in the cache before the conversation, and stay.
    """

    cache: DynamicCache | None = None
    token_ids: list[int] = field(default_factory=list)
    media_keys: dict[int, str] = field(default_factory=dict)
    virtual_tokens: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)  # one at a time

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "turn"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, turn=threading.Lock())

    def reuse(self, token_ids: list[int], media_keys: dict[int, str]) -> int:
        """Crops the cache to what a new prompt has in common with it, and returns that length.

        Args:
            token_ids: of the new prompt.
            media_keys: position of each placeholder → fingerprint of what stands there.
        """
        if self.cache is None or not self.cache.is_croppable:
            self.cache, common = DynamicCache(), 0
        else:
            limit = min(len(self.token_ids), len(token_ids) - 1)
            same = (token_ids[i] == self.token_ids[i] and media_keys.get(i) == self.media_keys.get(i) for i in range(limit))
            common = next((i for i, equal in enumerate(same) if not equal), limit)
            if surplus := self._cached() - common:
                self.cache.crop(-surplus)
        self.media_keys = media_keys
        return common

    def remember(self, token_ids: list[int], cache: DynamicCache) -> None:
        """Keeps a finished turn: its prompt and answer, as far as the cache has seen them."""
        self.cache = cache
        self.token_ids = token_ids[: self._cached()]

    def _cached(self) -> int:
        """How many tokens of the conversation the cache holds."""
        return max(self.cache.get_seq_length() - self.virtual_tokens, 0)

    def forget(self) -> None:
        """Starts afresh, after an answer that broke off."""
        self.cache, self.token_ids, self.media_keys = None, [], {}


def fingerprint_media(model: NextGPTForConditionalGeneration, inputs: dict) -> dict[int, str]:
    """Position of each placeholder in a single prompt → fingerprint of its media."""
    positions = model.get_placeholder_mask(inputs["input_ids"])[0].nonzero().flatten().tolist()
    features = inputs["media_features"] if positions else ()
    return {
        position: hashlib.sha256(feature.float().cpu().numpy().tobytes()).hexdigest()
        for position, feature in zip(positions, features, strict=True)
    }
