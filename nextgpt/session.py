"""A conversation with its KV cache: what the next turn has in common with the last one is not computed again."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field

from transformers import Cache

from nextgpt.context.dynamic import EmbeddingsCache
from nextgpt.context.windows import can_take_back
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """Keeps the KV cache of one conversation between turns. Make one with `pipeline.new_session()`.

    Args:
        virtual_tokens: of the model's adapter; they stand in the cache before the conversation, and stay.
    """

    cache: Cache | None = None
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

        It is 0, and `cache` None, where nothing can be kept: the cache cannot be cropped, the conversation has left the
        sliding window that it would have to go back to, or dynamic positions change with the prompt's length.

        Args:
            token_ids: of the new prompt.
            media_keys: position of each placeholder → fingerprint of what stands there.
        """
        common = 0
        if self.cache is not None and self.cache.is_croppable:
            limit = min(len(self.token_ids), len(token_ids) - 1)
            same = (token_ids[i] == self.token_ids[i] and media_keys.get(i) == self.media_keys.get(i) for i in range(limit))
            common = next((i for i, equal in enumerate(same) if not equal), limit)
        surplus = self._cached() - common
        if not common or not self._holds(surplus, len(token_ids)):
            self.cache, common = None, 0
        elif surplus:
            self.cache.crop(-surplus)
        self.media_keys = media_keys
        return common

    def _holds(self, surplus: int, length: int) -> bool:
        """Whether the cache, without its last `surplus` tokens, serves a prompt of so many tokens; says so where not."""
        if isinstance(self.cache, EmbeddingsCache):
            if not self.cache.holds(length + self.virtual_tokens):
                logger.info("%d tokens change the dynamic positions: all of them are computed again", length)
                return False
            return True
        if not can_take_back(self.cache, surplus):
            logger.warning(
                "the conversation has left its sliding window, and its last %d tokens have changed: the cache is of no use, "
                "all %d tokens are computed again",
                surplus,
                length,
            )
            return False
        return True

    def remember(self, token_ids: list[int], cache: Cache) -> None:
        """Keeps a finished turn: its prompt and answer, as far as the cache has seen them."""
        self.cache = cache
        self.token_ids = token_ids[: self._cached()]

    def _cached(self) -> int:
        """How many tokens of the conversation the cache holds."""
        return max(self.cache.get_seq_length() - self.virtual_tokens, 0) if self.cache is not None else 0

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
