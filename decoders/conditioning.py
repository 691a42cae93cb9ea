"""The conditioning of a decoder: a dictionary of named tensors, their shapes, and which of them a model has to make."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

Conditioning = dict[str, torch.Tensor]  # name → [N, *shape]


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
