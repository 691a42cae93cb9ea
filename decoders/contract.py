"""What a decoder declares: its conditioning as named tensors, which of them a model has to make, and its options.

And what a call of it has to do with its caller after each step: telling it, and dropping rows that it no longer wants.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

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
    if not isinstance(value, expected) or isinstance(value, bool) or not 0 < value < math.inf:
        return f"{name} must be a {'whole number' if expected is int else 'number'} above 0, got {value!r}."
    if size is not None and not size.fits(value):
        return f"{name} must be {size}, got {value!r}."
    return None


# The rows of one call under way ---------------------------------------------------------------------------------------

Preview = Callable[[], list[Image.Image | None]]
OnStep = Callable[[int, int, Preview | None], None]


class GenerationCancelled(Exception):
    """The caller's `cancel` event was set while media were being made."""


class Stop(Protocol):
    """An event, or something like it."""

    def is_set(self) -> bool:
        """As `threading.Event` has it."""


def stop_if(cancel: Stop | Sequence[Stop] | None) -> None:
    """Raises GenerationCancelled where nothing is wanted any more: `cancel` is set, or, of several, all are."""
    stops = cancel if isinstance(cancel, Sequence) else [cancel]
    if all(stop is not None and stop.is_set() for stop in stops):
        raise GenerationCancelled("The generation was cancelled.")


class RowsUnderWay:
    """Called after each step with its index, from 0, and the latents.

    Args:
        pipeline: this call's own, with its own scheduler.
        generators: of the rows; the very list that the pipeline has.
        tensors: names of what the pipeline's callback may replace; those that are not given stay.
        preview: pipeline and latents → a preview of them.
        on_step, cancel: as for `Decoder.generate`.
    """

    def __init__(
        self,
        pipeline: Any,
        generators: list[torch.Generator],
        tensors: Sequence[str],
        preview: Callable[[Any, torch.Tensor], Preview | None],
        on_step: OnStep | None,
        cancel: Stop | Sequence[Stop] | None,
    ):
        self.pipeline, self.generators, self.tensors = pipeline, generators, tuple(tensors)
        self.preview, self.on_step, self.cancel = preview, on_step, cancel
        self.count = len(generators)
        self.rows = list(range(self.count))  # those that are still computed

    def __call__(self, index: int, latents: torch.Tensor) -> None:
        stop_if(self.cancel)
        if self.on_step is not None:
            scheduler = self.pipeline.scheduler
            total = math.ceil(len(scheduler.timesteps) / scheduler.order)
            self.on_step(index + 1, total, self._preview_in_place(self.preview(self.pipeline, latents)))
            stop_if(self.cancel)

    def shrink(self, given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """Drops the rows that are no longer wanted, and gives what is to replace the pipeline's tensors."""
        wanted = [i for i, row in enumerate(self.rows) if not self._is_unwanted(row)]
        if len(wanted) == len(self.rows) or not wanted or not self._can_shrink(given):
            return {}
        count, latents = len(self.rows), given["latents"]
        _keep_of_state(self.pipeline.scheduler, wanted, latents)
        self.rows = [self.rows[i] for i in wanted]
        self.generators[:] = [self.generators[i] for i in wanted]
        return {name: _keep(tensor, wanted, count) for name, tensor in given.items() if tensor is not None}

    def in_place(self, items: Sequence) -> list:
        """What was made of the remaining rows, each in its place, None in the others'."""
        if len(items) == self.count:
            return list(items)
        placed: list = [None] * self.count
        for row, item in zip(self.rows, items, strict=True):
            placed[row] = item
        return placed

    def _preview_in_place(self, preview: Preview | None) -> Preview | None:
        if preview is None or len(self.rows) == self.count:
            return preview
        rows = list(self.rows)

        def in_place() -> list[Image.Image | None]:
            shown = dict(zip(rows, preview(), strict=True))
            return [shown.get(row) for row in range(self.count)]

        return in_place

    def _is_unwanted(self, row: int) -> bool:
        return isinstance(self.cancel, Sequence) and self.cancel[row] is not None and self.cancel[row].is_set()

    def _can_shrink(self, given: dict) -> bool:
        denoiser = getattr(self.pipeline, "unet", None)  # one that is told the guidance has it in a tensor of its own
        told_guidance = denoiser is not None and denoiser.config.get("time_cond_proj_dim") is not None
        return bool(self.tensors) and set(self.tensors) <= given.keys() and not told_guidance


def at_step_end(after_step: Callable[[int, torch.Tensor], None], pipeline: Any) -> dict[str, Any]:
    """A pipeline's arguments for being told of each step. Second-order schedulers evaluate the denoiser twice a step."""
    batch = after_step if isinstance(after_step, RowsUnderWay) else None
    replaceable = batch is not None and set(batch.tensors) <= set(pipeline._callback_tensor_inputs)

    def on_step_end(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        after_step(index // pipeline.scheduler.order, tensors["latents"])
        return batch.shrink(tensors) if batch is not None else {}

    names = list(batch.tensors) if batch is not None and batch.tensors and replaceable else ["latents"]
    return {"callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": names}


def _keep(tensor: torch.Tensor, rows: list[int], count: int) -> torch.Tensor:
    """Some of `count` rows; with guidance there may be twice as many, those without their prompt first."""
    halves = tensor.unflatten(0, (-1, count))
    return halves[:, rows].flatten(0, 1)


def _keep_of_state(scheduler: Any, rows: list[int], latents: torch.Tensor) -> None:
    """What a scheduler remembers of earlier steps has the latents' shape, alone or in lists."""

    def kept(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.shape == latents.shape:
            return value[rows]
        if isinstance(value, list):
            return [kept(each) for each in value]
        return value

    for name, value in vars(scheduler).items():
        if isinstance(value, (torch.Tensor, list)):
            setattr(scheduler, name, kept(value))
