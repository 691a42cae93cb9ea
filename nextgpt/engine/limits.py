"""How much the engine takes on at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Limits:
    """May be changed at any time; requests from then on keep to it.

    Args:
        max_batch_rows: conversations that the LLM answers at a time.
        max_media_rows: media that a decoder makes in one batch.
        max_waiting: conversations that may wait for the LLM. A request that finds so many, and no room in the batch, is
            refused with `QueueFullError`; a list of conversations is let in as a whole.
        max_wait_seconds: how long a medium waits, while other answers are under way, for others to be made in the same
            batch; none waits where it is the only answer. Whatever has other options comes next, the oldest first.
    """

    max_batch_rows: int = 16
    max_media_rows: int = 8
    max_waiting: int = 256
    max_wait_seconds: float = 0.02
