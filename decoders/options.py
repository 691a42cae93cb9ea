"""The options of a decoder: which values they may have, and what stands for the values that were not given."""

from dataclasses import dataclass
from typing import Any

INTEGER_OPTIONS = {"num_inference_steps", "height", "width", "num_frames"}


@dataclass(frozen=True)
class Size:
    """Which values a size option may have: `least`, `least + step`, `least + 2 step` … up to `most`.

    Args:
        least: the smallest value.
        step: between two values; None where every number is taken.
        most: the largest value; None where there is no bound but time and memory.
        default: what the weights were made for.
    """

    least: float
    step: int | None = None
    most: float | None = None
    default: float | None = None

    @classmethod
    def only(cls, value: float) -> "Size":
        """The one value that some weights make."""
        return cls(value, None, value, value)

    def fits(self, value: float) -> bool:
        """Whether the decoder can make this size."""
        if value < self.least or (self.most is not None and value > self.most):
            return False
        return self.step is None or (value - self.least) % self.step == 0

    def __str__(self) -> str:
        """What is taken, in words."""
        if self.least == self.most:
            return f"{self.least:g}: these weights make no other"
        bounds = f"at least {self.least:g}" if self.most is None else f"from {self.least:g} to {self.most:g}"
        if self.step is None or self.step == 1:
            return bounds
        if self.least % self.step == 0:
            return f"a multiple of {self.step}, {bounds}"
        return f"{self.least % self.step:g} more than a multiple of {self.step}, {bounds}"


def multiples(step: int, default: float | None = None, most: float | None = None) -> Size:
    """`step`, twice `step`, …"""
    return Size(step, step, most, default)


def check_option(name: str, value: Any, size: Size | None = None) -> str | None:
    """What is wrong with the value of an option; None where nothing is, or where it is None."""
    if value is None:
        return None
    expected = int if name in INTEGER_OPTIONS else (int, float)
    if not isinstance(value, expected) or isinstance(value, bool) or not value > 0:
        return f"{name} must be a {'whole number' if expected is int else 'number'} above 0, got {value!r}."
    if size is not None and not size.fits(value):
        return f"{name} must be {size}, got {value!r}."
    return None
