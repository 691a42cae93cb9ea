"""The order in which an epoch visits its conversations: shuffled, mixed by weight, grouped by length.

The order is a function of the seed and the number of the epoch alone, so that a run can go on in an epoch's middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

BLANK = -1  # the index of a conversation that teaches nothing


class EpochSampler(Sampler[int]):
    """Draws as many conversations an epoch as there are. Needs 8 bytes of memory for each.

    Args:
        sources: `[n]`, the number of each conversation's file.
        seed: of the shuffling.
        weights: of the files in the mixture. A file gives its share of the epoch, going through itself as often as
            that takes and never a second time before it is through. Without them each conversation comes once.
        lengths: `[n]` tokens; given to put conversations of similar length into one step.
        step_size: conversations of one optimizer step, over all processes.
        shuffle: without it the conversations come as they stand, and mixtures and groups are left aside.
        multiple: an epoch ends with as many `BLANK` as make its length one of this: several processes need batches of
            equal number and size, and a conversation that some of them repeat would count twice.
    """

    def __init__(
        self,
        sources: np.ndarray,
        *,
        seed: int,
        weights: Sequence[float] | None = None,
        lengths: np.ndarray | None = None,
        step_size: int = 1,
        shuffle: bool = True,
        multiple: int = 1,
    ):
        self.sources, self.seed, self.weights = sources, seed, weights
        self.lengths, self.step_size, self.shuffle, self.multiple = lengths, step_size, shuffle, multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sources) + self._blanks

    def __iter__(self) -> Iterator[int]:
        yield from map(int, self._order())
        yield from [BLANK] * self._blanks

    @property
    def _blanks(self) -> int:
        return -len(self.sources) % self.multiple

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.sources))
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self._mixture(random) if self.weights else len(self.sources))
        if self.lengths is None:
            return order
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        lengths = self.lengths[order].tolist()
        return order[get_length_grouped_indices(lengths, self.step_size, generator=generator)]

    def _mixture(self, random: np.random.Generator) -> np.ndarray:
        """Indices of an epoch, file by file."""
        drawn = []
        for source, count in enumerate(shares(self.weights, len(self.sources))):
            own = np.flatnonzero(self.sources == source)
            whole, rest = divmod(count, len(own)) if count else (0, 0)
            drawn += [own] * whole + [random.permutation(own)[:rest]]
        return np.concatenate(drawn)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided in proportion to the weights, in whole numbers that add up to it."""
    ends = np.rint(np.cumsum(weights) / np.sum(weights) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()
