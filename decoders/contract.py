"""What a decoder declares: its conditioning as named tensors, which of them a model has to make, and its options."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

Conditioning = dict[str, torch.Tensor]  # name → [N, *shape]
INTEGER_OPTIONS = {"num_inference_steps", "height", "width", "num_frames"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a decoder's conditioning.

    Args:
        shape: of one item: `(queries, width)`, or `(width,)` for a single vector.
        constant: None for a tensor that is projected from signal states; else the number that fills it at every item
            (a mask of ones, a duration): no model makes it, no loss compares it.
    """

    shape: tuple[int, ...]
    constant: float | None = None

    @property
    def is_projected(self) -> bool:
        """Whether an output projection makes it."""
        return self.constant is None

    @property
    def queries(self) -> int:
        """Learned queries that read it out: one for a single vector."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def width(self) -> int:
        """Of each of its vectors."""
        return self.shape[-1]


ConditioningSpec = dict[str, TensorSpec]


def projected_shapes(spec: ConditioningSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape of one item, for what an output projection has to make."""
    return {name: tensor.shape for name, tensor in spec.items() if tensor.is_projected}


def describe_shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes of one item for a person: `77 × 2048 and 1 × 1280`."""
    return " and ".join(f"{shape[0] if len(shape) > 1 else 1} × {shape[-1]}" for shape in shapes)


def add_constants(spec: ConditioningSpec, conditioning: Conditioning) -> Conditioning:
    """`conditioning` with the constants of `spec` that it lacks."""
    first = next(iter(conditioning.values()))
    constants = {
        name: torch.full((len(first), *tensor.shape), tensor.constant, device=first.device, dtype=first.dtype)
        for name, tensor in spec.items()
        if not tensor.is_projected
    }
    return constants | conditioning


def check_conditioning(spec: ConditioningSpec, conditioning: Conditioning, taker: str, advice: str) -> None:
    """Checks names and shapes; constants may be absent.

    Args:
        taker: who takes it, as `The decoder 'stable-diffusion' at /models/sd`.
        advice: what to do, at the end of the message.

    Raises:
        ValueError: names the first tensor that is missing, unknown or of another shape.
    """
    takes = ", ".join(f"{name} {_batch_shape(tensor.shape)}" for name, tensor in spec.items())
    if not isinstance(conditioning, dict):
        found = type(conditioning).__name__
        raise ValueError(f"{taker} takes a dictionary of named tensors ({takes}), got a {found}. {advice}")
    if missing := [name for name, tensor in spec.items() if tensor.is_projected and name not in conditioning]:
        raise ValueError(f"{taker} takes '{missing[0]}', which is missing: it takes {takes}. {advice}")
    if strange := [name for name in conditioning if name not in spec]:
        raise ValueError(f"{taker} takes no '{strange[0]}': it takes {takes}. {advice}")
    rows = len(next(iter(conditioning.values())))
    for name, tensor in conditioning.items():
        if tuple(tensor.shape[1:]) != spec[name].shape or tensor.ndim == 0:
            raise ValueError(
                f"{taker} takes '{name}' of shape {_batch_shape(spec[name].shape)}, got {list(tensor.shape)}. {advice}"
            )
        if len(tensor) != rows:
            raise ValueError(
                f"The conditioning has {rows} rows of '{next(iter(conditioning))}' and {len(tensor)} of '{name}'."
            )


def _batch_shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


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
