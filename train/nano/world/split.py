"""Which combinations of the world are held out: one fixed function of their names, in one place."""

from __future__ import annotations

import hashlib

HELD_OUT = 10  # of 100 combinations
DEVELOPMENT = 5


def split_of_names(*names: str) -> str:
    """The split of a combination, given by its names in a fixed order.

    One tenth of all combinations are `heldout`: no part of the model ever sees them, and only the final table measures
    on them. One twentieth are `dev`, for tuning. Every other one is `train`.
    """
    bucket = int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:8]) % 100
    if bucket < HELD_OUT:
        return "heldout"
    return "dev" if bucket < HELD_OUT + DEVELOPMENT else "train"


def split_of(concept: str, style: str, background: str, size: str) -> str:
    """The split of a picture."""
    return split_of_names("picture", concept, style, background, size)
