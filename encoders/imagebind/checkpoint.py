"""Reads the reference implementation's checkpoint: tensors alone, key for key."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from nextgpt.encoders.base import freeze
from nextgpt.encoders.imagebind.configuration import ImageBindConfig, imagebind_huge_config
from nextgpt.encoders.imagebind.modeling import ImageBind


def load_imagebind_checkpoint(
    path: str | Path, config: ImageBindConfig | None = None, dtype: torch.dtype | None = None
) -> ImageBind:
    """Load a checkpoint of the reference implementation, key for key, frozen.

    Args:
        path: `imagebind_huge.pth`; only tensors are read from it, no pickled code is run.
        config: its sizes, `imagebind_huge_config()` by default.
        dtype: type of the loaded weights; as stored by default.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is not a checkpoint of weights, or its keys or shapes are not the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; expected the official ImageBind checkpoint (imagebind_huge.pth, 4.5 GB). "
            "Download it from the ImageBind repository and give its path."
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of weights only; expected a state dict saved by torch.save. "
            f"Download it again. ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        ) from error
    with torch.device("meta"):
        model = ImageBind(config or imagebind_huge_config())
    _check_state_dict(path, weights, model.state_dict())
    model.load_state_dict(weights, assign=True)
    return freeze(model if dtype is None else model.to(dtype))


def _check_state_dict(path: Path, found: object, expected: dict[str, Tensor]) -> None:
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds {type(found).__name__}, expected a state dict: names to tensors.")
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{path} does not fit the ImageBind configuration. Weights {listed}. Check the sizes given.")
