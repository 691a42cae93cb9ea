"""How large adapters are, computed without weights: each gets the size that comes nearest to a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from nextgpt.adapters import Adapter
from nextgpt.errors import UserInputError
from nextgpt.train.compare.settings import Method

ALIKE = 1.1  # the largest of the adapters that have a size has at most so many times the parameters of the smallest
MOST = 1 << 20  # of a size


def count_parameters(text_config: PreTrainedConfig, adapter: dict[str, Any] | None) -> int:
    """How many parameters an adapter has on an LLM."""
    if adapter is None:
        return 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text_config).requires_grad_(False)
        return sum(each.numel() for each in Adapter(model, adapter).parameters().values())


def fit_sizes(methods: Iterable[Method], text_config: PreTrainedConfig, budget: int) -> dict[str, tuple[Method, int]]:
    """Name → the method with its size found, and its parameters; those that have no size stay as they are.

    Raises:
        UserInputError: an adapter cannot come near the budget, or two of them come to more than 10% apart.
    """
    found, sized = {}, {}
    for method in methods:
        if method.size is not None:
            value = _nearest(
                cache(lambda value, of=method: count_parameters(text_config, of.adapter | {of.size: value})), budget
            )
            method = replace(method, adapter=method.adapter | {method.size: value})
        found[method.name] = method, count_parameters(text_config, method.adapter)
        if method.size is not None:
            sized[method.name] = found[method.name][1]
    if sized and max(sized.values()) > ALIKE * min(sized.values()):
        told = ", ".join(f"{name} {count:,}" for name, count in sized.items())
        raise UserInputError(
            f"budget is {budget:,}, and the sizes nearest to it are more than 10% apart: {told}; give another budget, or "
            "leave out `size` of a method that cannot come near"
        )
    return found


def _nearest(count: Callable[[int], int], budget: int) -> int:
    """The whole number of at least 1 with a count nearest to the budget; counts grow with the number."""
    low, high = 1, 1
    while count(high) < budget and high < MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < budget else (low, middle)
    return min((low, high), key=lambda value: abs(count(value) - budget))
