"""What of a model is trained, and the checkpoint that holds it and nothing else; read and written in full or refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextgpt.adapters import WEIGHTS, folder_name, title
from nextgpt.errors import ModelLoadError, first_line, refuse_upload

TRAINED_FILE = "model.safetensors"
MODULES = ("input_projection", "output_projections", "signal_rows", "value_heads")  # trained parts of the model's own
TRAINED_GROUPS = (*MODULES, "adapter")
STAGE_GROUPS = tuple(group for group in TRAINED_GROUPS if group != "value_heads")  # those that every model has
OLD_SPELLINGS = {"lora": "adapter"}  # of a trained group


def group_name(name: str) -> str:
    """A trained group's name, whichever way it is spelled."""
    return OLD_SPELLINGS.get(name, name)


class CheckpointMixin:
    """Says what of a model is trained, saves and loads it."""

    def group_parameters(self, group: str) -> dict[str, nn.Parameter]:
        """The parameters of one of `TRAINED_GROUPS`, by their names within it."""
        if group_name(group) == "adapter":
            return self.adapter.parameters() if self.adapter else {}
        if (module := getattr(self, group)) is None:
            return {}
        return {name: each for name, each in module.named_parameters() if not name.startswith("target.")}

    def train_only(self, groups: Iterable[str]) -> None:
        """Leaves gradients on for these of `TRAINED_GROUPS` alone."""
        groups = {group_name(group) for group in groups}
        if unknown := groups - set(TRAINED_GROUPS):
            raise ValueError(f"cannot train {sorted(unknown)}: the trained groups are {', '.join(TRAINED_GROUPS)}")
        self.requires_grad_(False)
        for group in groups:
            for parameter in self.group_parameters(group).values():
                parameter.requires_grad_(True)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        state_dict: dict | None = None,
        destination: str | os.PathLike | None = None,
        **unused,
    ) -> None:
        """Writes what was trained and nothing else: `config.json`, `model.safetensors` and the adapter's folder.

        Args:
            destination: the folder's place once it is finished, where it is written elsewhere first.
        """
        refuse_upload(unused)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.remember_parts()
        self.config.save_pretrained(folder, destination=destination)
        self.generation_config.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.trained_state().items()}
        save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})
        if self.adapter:
            self.adapter.save(folder / folder_name(self.config.adapter))

    def trained_modules(self) -> dict[str, nn.Module]:
        """The trained groups that are modules of this model's own, by name: all that it has but the adapter."""
        return {group: module for group in MODULES if (module := getattr(self, group)) is not None}

    def trained_state(self) -> dict[str, Tensor]:
        """The trained tensors that are not the adapter's, by name."""
        return {
            f"{group}.{name}": tensor
            for group, module in self.trained_modules().items()
            for name, tensor in module.state_dict().items()
        }

    def load_trained(
        self,
        folder: str | os.PathLike,
        *,
        adapter: bool = True,
        widened: bool = False,
        without: Iterable[str] = (),
    ) -> None:
        """Loads what a checkpoint holds, the trained tensors and the adapter, into a model that has its frozen parts.

        Args:
            adapter: whether to load the adapter; else it stays as it is.
            widened: this model's adapter may have layers that the checkpoint lacks; they stay as they are, without effect.
            without: modalities whose output projection stays as it is, too.

        Raises:
            ModelLoadError: a file is missing, damaged or does not fit.
        """
        file = Path(folder) / TRAINED_FILE
        left = tuple(f"output_projections.{modality}." for modality in without)
        kept = {name: tensor for name, tensor in self.trained_state().items() if name.startswith(left)}
        found = {name: tensor for name, tensor in _load_tensors(file).items() if not name.startswith(left)}
        self.load_trained_state(found | kept, source=str(file))
        if self.adapter and adapter:
            self._load_adapter(Path(folder) / folder_name(self.config.adapter), widened=widened)

    def load_trained_state(self, tensors: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Copies the trained tensors in; nothing may be missing, left over or of another shape."""
        own = self.trained_state()
        if problems := _misfits(own, tensors):
            raise ModelLoadError(
                f"{source} does not fit the configuration: {problems}. Load it with the configuration it was trained with"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def _load_adapter(self, folder: str | os.PathLike, *, widened: bool = False) -> None:
        """Loads a folder of peft into this model's adapter; every tensor must fit (`widened`: as for `load_trained`)."""
        file, own = Path(folder) / WEIGHTS, self.adapter.state()
        if not file.is_file():
            raise ModelLoadError(f"{folder} holds no {WEIGHTS}: the {title(self.config.adapter)} folder is incomplete")
        tensors = _load_tensors(file)
        if widened:
            tensors = own | tensors
        if problems := _misfits(own, tensors):
            raise ModelLoadError(f"{file} does not fit the language model: {problems}")
        self.adapter.load_state(tensors)


def _misfits(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """What is missing of a model's own tensors, left over or of another shape, in words; empty where all fits."""
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not part of this model" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, this model needs {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ModelLoadError(f"{file} is damaged ({first_line(error)}): copy it again") from error
    except FileNotFoundError:
        raise ModelLoadError(f"{file} is missing: copy the whole folder again") from None
