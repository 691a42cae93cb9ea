"""The modality: a curve, heights at even steps, kept as JSON. One row, a reader and a writer."""

import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nextgpt import Modality
from nextgpt.errors import UserInputError
from nextgpt.media.limits import check_duration


class Curve(NamedTuple):
    """Heights `[points]`, float32, and the seconds between two of them."""

    heights: np.ndarray
    step: float


def read_curve(file: BinaryIO, name: str) -> Curve:
    """A JSON file with `heights` and `step`."""
    if not is_curve(file, name):
        raise UserInputError(f"{name}: not a curve; give {CURVE.formats}")
    file.seek(0)
    values = json.load(file)
    check_duration("curve", len(values["heights"]) * values["step"], name)
    return Curve(np.array(values["heights"], dtype=np.float32), values["step"])


def ready_curve(value: Any) -> Curve:
    """A curve, or the pair of its fields."""
    heights, step = value
    return Curve(np.asarray(heights, dtype=np.float32), float(step))


def save_curve(curve: Curve, path: Path) -> None:
    """As `read_curve` takes it."""
    path.write_text(json.dumps({"heights": curve.heights.tolist(), "step": curve.step}))


def is_curve(file: BinaryIO, name: str) -> bool:
    """Whether a file holds what `save_curve` writes."""
    try:
        return {"heights", "step"} <= json.load(file).keys()
    except (ValueError, AttributeError):
        return False


def too_few_points(curve: Curve) -> str | None:
    """A curve of one point teaches nothing."""
    return f"{len(curve.heights)} points; use a longer one" if len(curve.heights) < 2 else None


CURVE = Modality(
    name="curve",
    plural="curves",
    article="a curve",
    signal="CRV",
    signal_tokens=3,
    suffixes=("curve",),
    formats="a JSON file with heights and step",
    read=read_curve,
    ready=ready_curve,
    save=save_curve,
    recognizes=is_curve,
    max_seconds=60,
    too_small=too_few_points,
)
