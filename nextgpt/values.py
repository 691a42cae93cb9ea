"""What tokens are worth: the heads that offline reinforcement learning adds to a model (ILQL, Snell et al. 2022)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from nextgpt.errors import UserInputError


def read_weight(given: float | None) -> float | None:
    """What a configuration says of `value_weight`; None: the model has no value heads.

    Raises:
        UserInputError: it is no number of 0 or more.
    """
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if given is not None and not (is_number and 0 <= given < math.inf):
        raise UserInputError(f"value_weight is {given!r}, expected a number of 0 or more, or none")
    return given


class ValueHeads(nn.Module):
    """Implicit Q and V of a token-level decision process, read off the LLM's last hidden states.

    Two Q heads, whose smaller estimate counts, and their slow copies, which decoding uses and V learns from.

    Args:
        hidden_size: of the LLM.
        vocab_size: signal tokens and placeholders included.
    """

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.q = nn.ModuleList([_head(hidden_size, vocab_size) for _ in range(2)])
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.v = _head(hidden_size, 1)

    def values(self, hidden_states: Tensor) -> Tensor:
        """V of each state: `[..., hidden]` → `[...]`."""
        return self.v(hidden_states.to(self.v[0].weight.dtype))[..., 0]

    def estimates(self, hidden_states: Tensor) -> list[Tensor]:
        """What each Q head says of every token: `[..., hidden]` → `[..., vocab_size]` each."""
        return [head(hidden_states.to(head[0].weight.dtype)) for head in self.q]

    def worth(self, hidden_states: Tensor) -> Tensor:
        """Q of every token by the slow copies: `[..., hidden]` → `[..., vocab_size]`."""
        one, other = (head(hidden_states.to(head[0].weight.dtype)) for head in self.target)
        return torch.minimum(one, other)

    def advantages(self, hidden_states: Tensor) -> Tensor:
        """How much better than the state each token is: `[..., hidden]` → `[..., vocab_size]`."""
        return self.worth(hidden_states) - self.values(hidden_states)[..., None]

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Moves the slow copies by a share of their distance from the Q heads."""
        for slow, fast in zip(self.target.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast.to(slow), share)


def _head(hidden_size: int, width: int) -> nn.Sequential:
    last = nn.Linear(2 * hidden_size, width)
    nn.init.zeros_(last.weight)  # nothing is worth anything at first, and decoding is the policy's own
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), last)
