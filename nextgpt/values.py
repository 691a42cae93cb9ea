"""Value heads, which offline reinforcement learning adds to a model: Q and V of tokens (ILQL, Snell et al. 2022)."""

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

    Two Q heads, of which the smaller value counts, and their target networks, which decoding uses and V learns from.

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

    def q_values(self, hidden_states: Tensor) -> list[Tensor]:
        """Q of every token by each of the two heads: `[..., hidden]` → `[..., vocab_size]` each."""
        return [head(hidden_states.to(head[0].weight.dtype)) for head in self.q]

    def target_q_values(self, hidden_states: Tensor) -> Tensor:
        """Q of every token by the target networks: `[..., hidden]` → `[..., vocab_size]`."""
        one, other = (head(hidden_states.to(head[0].weight.dtype)) for head in self.target)
        return torch.minimum(one, other)

    def advantages(self, hidden_states: Tensor) -> Tensor:
        """Q - V of every token: `[..., hidden]` → `[..., vocab_size]`."""
        return self.target_q_values(hidden_states) - self.values(hidden_states)[..., None]

    @torch.no_grad()
    def soft_update(self, rate: float) -> None:
        """The target networks' Polyak averaging: each parameter goes this share of the way to that of its Q head."""
        for target, online in zip(self.target.parameters(), self.q.parameters(), strict=True):
            target.lerp_(online.to(target), rate)


def _head(hidden_size: int, width: int) -> nn.Sequential:
    last = nn.Linear(2 * hidden_size, width)
    nn.init.zeros_(last.weight)  # all values and advantages are 0 at first, and decoding is the policy's own
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), last)
