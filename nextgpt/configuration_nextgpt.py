"""The configuration of a NExT-GPT model: which frozen parts it joins and how large the trained bridges are.

It names the frozen parts; their own configurations are read from them (never written twice).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from nextgpt import __version__
from nextgpt import decoders as decoder_room
from nextgpt import encoders as encoder_room
from nextgpt.adapters import read_bridge, read_settings, virtual_tokens
from nextgpt.checkpoint import group_name
from nextgpt.context import settings as context
from nextgpt.encoders.loading import ENCODERS
from nextgpt.errors import ModelLoadError, UserInputError, first_line
from nextgpt.hub.fingerprints import fingerprint
from nextgpt.hub.parts import FrozenPart, resolve_model
from nextgpt.modalities import MODALITIES, check_known
from nextgpt.multimodal.registration import know_presets
from nextgpt.values import read_weight

PROJECTION_DEFAULTS = {"hidden_size": 512, "num_layers": 4, "num_heads": 4}
LOSS_DEFAULTS = {"text": 1.0, "conditioning": 1.0, "denoising": 1.0}


def loss_parts() -> tuple[str, ...]:
    """The parts of the loss that a weight can be given to, beside the tensors of a decoder's conditioning."""
    return (*LOSS_DEFAULTS, *(f"{kind}/{modality}" for kind in ("conditioning", "denoising") for modality in MODALITIES))


def without_tensor(part: str) -> str:
    """A part of the loss without its last name, where that is a tensor's: `conditioning/image/prompt_embeds`."""
    modality, _, tensor = part.rpartition("/")
    return modality if tensor and modality.startswith("conditioning/") else part


class NextGPTConfig(PreTrainedConfig):
    """Configuration of [`NextGPTForConditionalGeneration`].

    Args:
        language_model, encoder: the frozen LLM and media encoder, as [`FrozenPart`] fields.
        decoders: output modality → its frozen diffusion decoder, as [`FrozenPart`] fields with a `kind`.
        signal_tokens: output modality → signal tokens a run has; by default those of the table of modalities (4 for an
            image, 8 for a sound, 24 for a video) for the modalities that have a decoder.
        input_modalities: what may stand in a prompt; by default what the encoder takes.
        output_projection: size of the output projections' transformer.
        input_bridge: how media come into the LLM: `{"kind": "linear"}`, as embeddings in the sequence, the default; or
            `{"kind": "prefix"}`, as prefixes of its upper layers (see `nextgpt.adapters.media_prefix`).
        adapter: of the LLM: a type of peft's, or of our own, and fields of its configuration, as
            `{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20}`, or `False` for none; by default LoRA. See
            `nextgpt.adapters`.
        lora: the old spelling of `adapter`: fields of peft's `LoraConfig`, or `False`.
        rope_parameters: how the LLM's positions are scaled for a longer context, in transformers' words: `{"rope_type":
            "linear", "dynamic" or "yarn", "factor": 4.0}`. `original_max_position_embeddings` is the LLM's own limit where
            it is not given; the new limit is that times the factor. Its old key is `rope_scaling`.
        sliding_window: how many tokens back the LLM sees, where its class has such a window.
        value_weight: how much a token's advantage counts in decoding, of a model with value heads (`nextgpt.values`).
        loss_weights: weight of each part of the training loss, as `{"conditioning": 1.0, "conditioning/audio": 50.0}`; a
            modality's own weight stands for that of its kind, and that of one tensor of its conditioning
            (`conditioning/image/pooled_prompt_embeds`) for its modality's.
        token_offset: id of the first added token; by default the LLM's vocabulary size.
        trained_groups: which of the trained parts a stage has trained so far; None where no one wrote it down.
        text_config, encoder_config: given in place of `language_model` and `encoder` to build randomly initialised
            parts; otherwise read from the parts.
    """

    model_type = "nextgpt"
    has_no_defaults_at_init = True

    def __init__(
        self,
        language_model: dict | None = None,
        encoder: dict | None = None,
        decoders: dict[str, dict] | None = None,
        signal_tokens: dict[str, int] | None = None,
        input_modalities: list[str] | None = None,
        output_projection: dict | None = None,
        input_bridge: dict | None = None,
        adapter: dict | bool | None = None,
        lora: dict | bool | None = None,
        rope_parameters: dict | None = None,
        sliding_window: int | None = None,
        loss_weights: dict | None = None,
        value_weight: float | None = None,
        token_offset: int | None = None,
        trained_groups: list[str] | None = None,
        text_config: PreTrainedConfig | dict | None = None,
        encoder_config: PreTrainedConfig | dict | None = None,
        **kwargs,
    ):
        self.language_model = language_model
        self.encoder = encoder
        self.decoders = decoders or {}
        check_known(self.decoders, "decoders for")
        self.signal_tokens = signal_tokens or {m: row.signal_tokens for m, row in MODALITIES.items() if m in self.decoders}
        self.output_projection = PROJECTION_DEFAULTS | (output_projection or {})
        self.input_bridge = read_bridge(input_bridge)
        self.adapter = read_settings(adapter, lora)
        rope_parameters = context.read_rope(rope_parameters, kwargs.pop("rope_scaling", None))
        self.sliding_window = context.read_window(sliding_window)
        self._lengthened: PreTrainedConfig | None = None  # the LLM's configuration with these
        self.trained_groups = [group_name(group) for group in trained_groups] if trained_groups else trained_groups
        self.loss_weights = LOSS_DEFAULTS | (loss_weights or {})
        self.value_weight = read_weight(value_weight)
        self._name_or_path = str(kwargs.get("name_or_path", ""))  # relative paths are read from here on
        self._input_modalities = input_modalities
        self._token_offset = token_offset
        self._text_config = AutoConfig.for_model(**text_config) if isinstance(text_config, dict) else text_config
        self._encoder_config = (
            encoder_config_from_dict(encoder_config) if isinstance(encoder_config, dict) else encoder_config
        )
        super().__init__(**kwargs)
        self.rope_parameters = rope_parameters  # after it, which would complete them as an LLM's own

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """Reads `config.json` of a preset (`"nano"`, `"7b"`), a folder or a Hub repository."""
        location = resolve_model(pretrained_model_name_or_path)
        try:
            values, kwargs = super().get_config_dict(location, **kwargs)
        except OSError as error:
            raise ModelLoadError(f"{location}/config.json cannot be read: {first_line(error)}") from error
        if values.get("model_type") != cls.model_type:
            raise ModelLoadError(
                f"{location} describes a {values.get('model_type', 'model without config.json')!r}, "
                f"expected {cls.model_type!r}: name a saved NExT-GPT"
            )
        try:
            read_bridge(values.get("input_bridge"))
            read_settings(values.get("adapter"), values.get("lora"))
            context.read_rope(values.get("rope_parameters"), values.get("rope_scaling"))
            context.read_window(values.get("sliding_window"))
            read_weight(values.get("value_weight"))
        except UserInputError as error:
            raise ModelLoadError(f"{location}/config.json: {error}") from None
        return values | {"name_or_path": location}, kwargs  # relative paths start from there

    def save_pretrained(
        self, save_directory: str | os.PathLike, destination: str | os.PathLike | None = None, **kwargs
    ) -> None:
        """Writes `config.json`; relative paths of frozen parts are rewritten to start from the new folder.

        Args:
            destination: the folder's place once it is finished, where it is written elsewhere first.
        """
        moved = copy.deepcopy(self)
        if self.base_folder is not None:
            for spec in moved.part_specs().values():
                for key in ("source", "config"):
                    if spec.get(key, "").startswith("."):
                        target = (self.base_folder / spec[key]).resolve()
                        moved_path = os.path.relpath(target, Path(destination or save_directory).resolve())
                        spec[key] = moved_path if moved_path.startswith(".") else f"./{moved_path}"
        super(NextGPTConfig, moved).save_pretrained(save_directory, **kwargs)

    def remember_parts(self) -> None:
        """Writes down a fingerprint of each frozen part that is on this machine: what is trained fits these alone."""
        self.nextgpt_version = __version__
        for name, part in self.parts().items():
            if path := part.local_path(self.base_folder):
                self.part_specs()[name]["fingerprint"] = fingerprint(path)

    def to_dict(self) -> dict:
        output = super().to_dict()
        for name in ("text_config", "encoder_config", "input_modalities", "token_offset", "lengthened"):
            output.pop(f"_{name}", None)
        for name in ("rope_parameters", "sliding_window"):
            if output.get(name) is None:
                output.pop(name, None)
        if output["input_bridge"]["kind"] == "linear":  # as before there was another
            del output["input_bridge"]
        for name in ("input_modalities", "token_offset"):
            if getattr(self, f"_{name}") is not None:
                output[name] = getattr(self, f"_{name}")
        if self.language_model is None and self._text_config is not None:
            output["text_config"] = self._text_config.to_dict()
        if self.encoder is None and self._encoder_config is not None:
            output["encoder_config"] = self._encoder_config.to_dict()
        return output

    @property
    def base_folder(self) -> Path | None:
        """The folder that relative paths start from."""
        return Path(self._name_or_path) if self._name_or_path and Path(self._name_or_path).is_dir() else None

    def part_specs(self) -> dict[str, dict]:
        """What `config.json` says of each frozen part that it names: its own dicts, not copies."""
        named = {"language_model": self.language_model, "encoder": self.encoder, **self.decoders}
        return {name: spec for name, spec in named.items() if spec}

    def loss_weight(self, part: str) -> float:
        """The weight of a part of the loss: `text`, `conditioning/<modality>/<tensor>` or `denoising/<modality>`.

        The nearest name that has a weight counts: the part's own, then its modality's, then its kind's.
        """
        while part not in self.loss_weights and "/" in part:
            part = part.rpartition("/")[0]
        return self.loss_weights[part]

    def check_loss_weights(self) -> None:
        """Raises ValueError where a weight is given to a tensor that the decoder does not take."""
        named = [part.split("/") for part in self.loss_weights if part.count("/") == 2]
        shapes = self.conditioning_shapes if named else {}
        for kind, modality, tensor in named:
            tensors = shapes.get(modality, {})
            if kind != "conditioning" or tensor not in tensors:
                known = ", ".join(tensors) or "none"
                raise ValueError(
                    f"loss_weights names {kind}/{modality}/{tensor}: the conditioning of this model's {modality} decoder "
                    f"has the tensors {known}"
                )

    def part(self, name: str) -> FrozenPart:
        """A frozen part by name: `language_model`, `encoder`, or an output modality for its decoder.

        Raises:
            ValueError: the configuration names no such part.
        """
        spec = self.decoders.get(name) if name in MODALITIES else getattr(self, name)
        if not spec:
            raise ValueError(f"the configuration names no {name}: give it as {{'source': folder or repository}}")
        return FrozenPart.from_dict(name, spec)

    def parts(self) -> dict[str, FrozenPart]:
        """All frozen parts that the configuration names."""
        return {name: FrozenPart.from_dict(name, spec) for name, spec in self.part_specs().items()}

    def location(self, name: str) -> str:
        """Where the weights of a frozen part are: a folder or a Hub repository."""
        return self.part(name).location(self.base_folder)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The LLM's own configuration, with scaled positions and a sliding window where this one asks for them."""
        return self._read_text_config()

    def _read_text_config(self) -> PreTrainedConfig:
        """Reads it where it is not known yet, and completes `rope_parameters` by the LLM's own limit."""
        if self._text_config is None:
            part = self.part("language_model")
            self._text_config = AutoConfig.from_pretrained(part.config_location(self.base_folder), revision=part.revision)
            self._lengthened = None
        if not self.rope_parameters and not self.sliding_window:
            return self._text_config
        if self._lengthened is None:
            self._lengthened = context.lengthened(self._text_config, self.rope_parameters, self.sliding_window)
            if self.rope_parameters:
                original = self._lengthened.rope_parameters[context.ORIGINAL]
                self.rope_parameters = self.rope_parameters | {context.ORIGINAL: original}
        return self._lengthened

    def language_model_config(self, own: PreTrainedConfig | None = None) -> PreTrainedConfig:
        """The configuration that the LLM's class is built with.

        Args:
            own: the LLM's, as it lies beside its weights; that of `text_config` where None.
        """
        changed = self._read_text_config()
        context.check_own_window(self._text_config if own is None else own)
        if own is None:
            return context.as_built(changed)
        return context.as_built(context.lengthened(own, self.rope_parameters, self.sliding_window))

    def lengthen(self, rope_parameters: dict[str, Any] | None = None, sliding_window: int | None = None) -> None:
        """Scales the LLM's positions and gives it a sliding window; None leaves each as it is.

        Raises:
            UserInputError: the positions are scaled already, otherwise than now, or the LLM cannot do it.
        """
        if rope_parameters and self.rope_parameters:
            self._read_text_config()
            known = {context.ORIGINAL: self.rope_parameters[context.ORIGINAL]} | rope_parameters
            if known != self.rope_parameters:
                scaled = context.describe_rope(self.rope_parameters)
                raise UserInputError(
                    f"rope_parameters: this model's positions are scaled already ({scaled}): leave it out, or start from a "
                    "model whose positions are not"
                )
        before = self.rope_parameters, self.sliding_window
        self.rope_parameters = self.rope_parameters or rope_parameters or None
        self.sliding_window = sliding_window or self.sliding_window
        self._lengthened = None
        try:
            self._read_text_config()
        except UserInputError:
            self.rope_parameters, self.sliding_window = before
            raise

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """The encoder's own configuration."""
        if self._encoder_config is None:
            part = self.part("encoder")
            self._encoder_config = encoder_room.encoder_config(part.config_location(self.base_folder), part.revision)
        return self._encoder_config

    @property
    def conditioning_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Output modality → tensor's name → its shape for one item, of all that is projected from signal states.

        Read off the decoders' configuration files.

        Raises:
            UserInputError: a decoder is of an unknown kind, or makes another modality.
        """
        shapes = {}
        for modality in self.signal_tokens:
            part = self.part(modality)
            decoder = decoder_room.DECODERS.get(part.kind)
            if decoder is not None and decoder.modality != modality:
                raise UserInputError(f"the {modality} decoder is a {part.kind!r}, which makes {decoder.modality}")
            try:
                spec = decoder_room.conditioning_spec(part.kind, part.config_location(self.base_folder), part.revision)
            except ValueError as error:
                raise UserInputError(f"the {modality} decoder: {error}") from error
            shapes[modality] = decoder_room.projected_shapes(spec)
        return shapes

    @property
    def ignore_keys_at_rope_validation(self) -> set[str]:
        """Keys of `rope_parameters` that transformers is not to complain of."""
        return context.unchecked_keys(getattr(self, "rope_parameters", None) or {})

    @property
    def max_position_embeddings(self) -> int | None:
        """How many positions the LLM has, scaled ones included; None if it says none."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def max_positions(self) -> int | None:
        """How many positions the LLM has for a conversation, beside its adapter's virtual tokens; None if it says none."""
        positions = self.max_position_embeddings
        return positions and positions - virtual_tokens(self.adapter)

    @property
    def input_modalities(self) -> list[str]:
        if self._input_modalities is None:
            self._input_modalities = [m for m in MODALITIES if m in self.encoder_config.modalities]
        return self._input_modalities

    @property
    def token_offset(self) -> int:
        return self._token_offset if self._token_offset is not None else self.text_config.vocab_size

    @property
    def vocab_size(self) -> int:
        """The LLM's vocabulary and the added tokens."""
        added = sum(self.signal_tokens.values()) + len(self.input_modalities)
        return max(self.text_config.vocab_size, self.token_offset + added)


def encoder_config_from_dict(values: dict) -> PreTrainedConfig:
    """The encoder configuration that `to_dict` wrote.

    Raises:
        UserInputError: no encoder of its kind is known.
    """
    kind = values.get("model_type")
    if kind not in ENCODERS:
        raise UserInputError(
            f"the encoder is a {kind!r}: the known ones are {', '.join(ENCODERS)}; a program that brings another calls "
            "nextgpt.register_encoder first"
        )
    return ENCODERS[kind].config_class.from_dict(values)


AutoConfig.register(NextGPTConfig.model_type, NextGPTConfig, exist_ok=True)
know_presets()
