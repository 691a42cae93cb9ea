"""What a checkpoint holds: the trained tensors and the LoRA folder, nothing else; read and written in full or refused."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextgpt.errors import ModelLoadError, first_line

TRAINED_FILE = "model.safetensors"
LORA_FOLDER = "lora"
ADAPTER_FILE = f"{LORA_FOLDER}/adapter_model.safetensors"  # as peft names it
TRAINED_GROUPS = ("input_projection", "output_projections", "signal_rows", "lora")


class CheckpointMixin:
    """Saves and loads what of a model was trained."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        state_dict: dict | None = None,
        destination: str | os.PathLike | None = None,
        **unused,
    ) -> None:
        """Writes what was trained and nothing else: `config.json`, `model.safetensors` and the LoRA folder.

        Args:
            destination: the folder's place once it is finished, where it is written elsewhere first.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.remember_parts()
        self.config.save_pretrained(folder, destination=destination)
        self.generation_config.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.trained_state().items()}
        save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})
        if self.config.lora:
            self.language_model.save_pretrained(folder / LORA_FOLDER, save_embedding_layers=False)

    def trained_state(self) -> dict[str, Tensor]:
        """The trained tensors that are not LoRA's, by name."""
        return {
            f"{group}.{name}": tensor
            for group in ("input_projection", "output_projections", "signal_rows")
            for name, tensor in getattr(self, group).state_dict().items()
        }

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA's tensors by the names that peft saves them under."""
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in self.language_model.named_parameters()
            if "lora_" in name
        }

    def load_trained(self, folder: str | os.PathLike, *, widened: bool = False) -> None:
        """Loads what a checkpoint holds, the trained tensors and the LoRA folder, into a model that has its frozen parts.

        Args:
            widened: this model's LoRA may have layers that the checkpoint lacks; they stay as they are, without effect.

        Raises:
            ModelLoadError: a file is missing, damaged or does not fit.
        """
        file = Path(folder) / TRAINED_FILE
        self.load_trained_state(_load_tensors(file), source=str(file))
        if self.config.lora:
            self.load_lora(Path(folder) / LORA_FOLDER, widened=widened)

    def load_trained_state(self, tensors: dict[str, Tensor], source: str = "checkpoint") -> None:
        """Copies the trained tensors in; nothing may be missing, left over or of another shape."""
        own = self.trained_state()
        problems = [f"{name} is missing" for name in own if name not in tensors]
        problems += [f"{name} is not part of this model" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {list(tensors[name].shape)}, this model needs {list(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ModelLoadError(
                f"{source} does not fit the configuration: {'; '.join(problems[:3])}{more}. "
                "Load it with the configuration it was trained with"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def load_lora(self, folder: str | os.PathLike, *, widened: bool = False) -> None:
        """Loads a LoRA folder into this model's adapter; every key must fit (`widened`: as for `load_trained`)."""
        from peft import set_peft_model_state_dict

        file = Path(folder) / "adapter_model.safetensors"
        if not file.is_file():
            raise ModelLoadError(f"{folder} holds no adapter_model.safetensors: the LoRA folder is incomplete")
        try:
            result = set_peft_model_state_dict(self.language_model, _load_tensors(file))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ModelLoadError(f"{file} does not fit the language model: {reason}") from None
        missing = [key for key in result.missing_keys if "lora_" in key and not widened]
        if missing or result.unexpected_keys:
            raise ModelLoadError(
                f"{file} does not fit the language model: missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}"
            )


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ModelLoadError(f"{file} is damaged ({first_line(error)}): copy it again") from error
