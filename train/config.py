"""One training run's settings: a YAML file, overridden on the command line."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from transformers import TrainingArguments

from nextgpt.adapters import check_settings, read_bridge
from nextgpt.checkpoint import TRAINED_GROUPS, group_name
from nextgpt.configuration_nextgpt import loss_parts, without_tensor
from nextgpt.context.settings import read_rope, read_window
from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.hardware import multiplies_faster_in_half, resolve_device
from nextgpt.hub.parts import FrozenPart
from nextgpt.train.data.dataset import ON_BAD_ITEM

logger = logging.getLogger(__name__)

COMMAND_LINE = "command line"
# Set by this package, not by the user: what they would mean is said by `TrainingConfig`'s own fields.
_RESERVED = {"output_dir", "remove_unused_columns", "resume_from_checkpoint"}
ARGUMENT_TYPES = {each.name: type(each.default) for each in dataclasses.fields(TrainingArguments) if each.init}
AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
# Own settings that are whole numbers, with the least each may be; `max_length` may be left out.
WHOLE_NUMBERS = {"feature_batch_size": 1, "max_length": 1, "tokenizing_workers": 0, "sample_steps": 0, "sample_count": 1}
DEFAULT_ARGUMENTS = {
    "adam_beta1": 0.9,  # the betas of the first published code
    "adam_beta2": 0.95,
    "logging_steps": 10,
    "report_to": "tensorboard",
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "ddp_timeout": 7 * 24 * 3600,  # the other processes wait while one computes the frozen features
    "ddp_find_unused_parameters": True,  # not every batch holds every kind of media, with checkpointed activations too
    "logging_nan_inf_filter": False,  # such a loss stops the run here, it is not passed over
    "use_cpu": not torch.accelerator.is_available(),  # else `bf16` is refused on a CPU
}


class BadSetting(UserInputError):
    """A setting is not what it should be; the caller adds where it was given."""

    def __init__(self, key: str, value: Any, expected: str):
        super().__init__(f"{key} is {value!r}, expected {expected}")
        self.key = key


@dataclass
class TrainingConfig:
    """Settings of one stage. Every field of transformers' `TrainingArguments` may stand beside these.

    Args:
        model: where to start: a NExT-GPT preset, folder or Hub repository. With trained weights in it (an earlier
            stage's output) training goes on from them; with a `config.json` alone the trained parts start afresh.
        data: JSON-lines files of chat messages (see `nextgpt.train.data.dataset`).
        data_weights: one number for each file, its weight in the mixture; by default every conversation comes once an
            epoch.
        on_bad_item: `fail` stops at a conversation or a file that cannot be used; `skip` goes on without it and lists
            it in `skipped.jsonl`.
        output_dir: receives the checkpoints and, at the end, the trained model.
        features: folder of the cached frozen features and of the tokenized data; stages and runs may share one.
        feature_batch_size: items that the frozen encoders take at once.
        max_length: longest conversation in tokens; by default what the LLM takes.
        tokenizing_workers: processes that tokenize the data at the start; files of less than 5 MB need none.
        dtype: of the frozen weights; the trained ones are always fp32.
        loss_weights: weight of each part of the loss: `text`, `conditioning`, `denoising`, or of one modality's part
            (`conditioning/audio`), or of one tensor's (`conditioning/image/pooled_prompt_embeds`).
        trains: only these of what the stage trains: `adapter`, `input_projection`, `output_projections`, `signal_rows`,
            `value_heads` (of ILQL alone).
        decoders: other decoders than the model's, as `{image: {kind: stable-diffusion-xl, source: FOLDER}}`, with the fields
            of [`FrozenPart`]. Their output projections start afresh, all else goes on as it was; `kind` is the old one's
            where it is not given.
        input_bridge: how media come into the LLM, as `{kind: prefix}`, of a model that has no trained weights yet.
        adapter: fields of peft's configuration that replace those of the model's adapter, such as more `target_modules`:
            layers that are new to it start without effect. With another `peft_type`, or another rank, a model whose adapter
            is not trained yet gets a new one.
        lora: the old spelling of `adapter`, for a `LoraConfig`; and of `adapter` in `trains` and `learning_rates`.
        rope_parameters: scaled positions for a model whose positions are not scaled yet, as `{rope_type: yarn, factor: 4}`
            (linear, dynamic or yarn; fields of transformers'). They stay with the model that is trained.
        rope_scaling: its old key.
        sliding_window: how many tokens back the LLM sees from now on, where its class has such a window.
        learning_rates: of single parts that the stage trains, where `learning_rate` does not suit them, as
            `input_projection: 2.0e-2`.
        denoising: add the decoders' own denoising loss; the assistant's media then need a `path` beside the `caption`.
        resume: `auto` goes on from the last checkpoint in `output_dir`, if there is one; a folder names one; `false`
            starts anew.
        sample_steps: after so many steps each time, and after the last one, answers to a few conversations of the data go
            to the log and to `samples` in `output_dir`; 0: never.
        sample_count: how many.
        arguments: fields of `TrainingArguments`; `bf16` may also be `auto`, mixed precision where that is faster.
    """

    model: str
    data: list[str]
    output_dir: str
    data_weights: list[float] | None = None
    on_bad_item: str = "fail"
    features: str = "runs/features"
    feature_batch_size: int = 64
    max_length: int | None = None
    tokenizing_workers: int = 0
    dtype: str = "float32"
    loss_weights: dict[str, float] = field(default_factory=dict)
    trains: list[str] | None = None
    decoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    input_bridge: dict[str, Any] | None = None
    adapter: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    sliding_window: int | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    denoising: bool = False
    resume: str | bool = "auto"
    sample_steps: int = 500
    sample_count: int = 4
    arguments: dict[str, Any] = field(default_factory=dict)

    of_the_objective: ClassVar[tuple[str, ...]] = ()  # settings of a subclass that two runs of one sequence share

    def __post_init__(self):
        self.data = [self.data] if isinstance(self.data, str) else self.data
        if not isinstance(self.data, list) or not all(isinstance(file, str) for file in self.data):
            raise BadSetting("data", self.data, "a list of JSON-lines files")
        for name in ("model", "output_dir", "features"):
            if not isinstance(getattr(self, name), str):
                raise BadSetting(name, getattr(self, name), "a name or a path")
        if not isinstance(self.denoising, bool):
            raise BadSetting("denoising", self.denoising, "true or false")
        if not isinstance(self.resume, bool | str):
            raise BadSetting("resume", self.resume, "auto, true, false or a checkpoint's folder")
        for name, least in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if name == "max_length" and value is None:
                continue
            if type(value) is not int or value < least:
                raise BadSetting(name, value, f"a whole number of at least {least}")
        if self.dtype not in DTYPES:
            raise BadSetting("dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        if self.on_bad_item not in ON_BAD_ITEM:
            raise BadSetting("on_bad_item", self.on_bad_item, f"one of {', '.join(ON_BAD_ITEM)}")
        if self.data_weights is not None:
            self._check_weights()
        self._check_adapter()
        self._check_decoders()
        read_bridge(self.input_bridge)
        self.rope_parameters, self.rope_scaling = read_rope(self.rope_parameters, self.rope_scaling) or {}, {}
        read_window(self.sliding_window)
        # Which tensors a decoder has is known with the model (`NextGPTConfig.check_loss_weights`).
        self.loss_weights = self._numbers("loss_weights", loss_parts(), without_tensor)
        self.learning_rates = self._numbers("learning_rates", TRAINED_GROUPS, group_name)

    @property
    def adapter_changes(self) -> dict[str, Any]:
        """What `adapter`, or `lora`, changes of the model's adapter."""
        return {"peft_type": "LORA"} | self.lora if self.lora else self.adapter

    def _check_adapter(self) -> None:
        for name in ("adapter", "lora"):
            if not isinstance(getattr(self, name), dict):
                expected = "fields of peft's configuration, as {target_modules: [q_proj, up_proj]}"
                raise BadSetting(name, getattr(self, name), expected)
        if self.adapter and self.lora:
            raise BadSetting("lora", self.lora, "nothing beside adapter, whose old spelling it is")
        if "peft_type" in self.adapter_changes:  # else it is the model's
            check_settings(self.adapter_changes)

    def _check_decoders(self) -> None:
        known = {each.name for each in dataclasses.fields(FrozenPart)}
        given = self.decoders.values() if isinstance(self.decoders, dict) else [None]
        if not all(isinstance(each, dict) and isinstance(each.get("source"), str) for each in given):
            raise BadSetting("decoders", self.decoders, "{image: {kind: stable-diffusion-xl, source: FOLDER}}, say")
        for modality, fields in self.decoders.items():
            _refuse_unknown(fields, known, f"decoders: {modality}: ")

    def _numbers(self, name: str, known: Iterable[str], known_as: Callable[[str], str] = str) -> dict[str, float]:
        """A setting that gives a number for each of some parts; `known_as` gives a part's name among the known ones."""
        given = getattr(self, name)
        try:
            numbers = {part: float(number) for part, number in given.items()}
        except (AttributeError, TypeError, ValueError):
            raise BadSetting(name, given, f"a number for each part, as {{{next(iter(known))}: 0.5}}") from None
        _refuse_unknown(map(known_as, numbers), known, f"{name}: ")
        return numbers

    def _check_weights(self) -> None:
        weights = self.data_weights
        numbers = isinstance(weights, list) and all(isinstance(each, int | float) and each >= 0 for each in weights)
        if not numbers or len(weights) != len(self.data) or not sum(weights):
            expected = f"a number for each of the {len(self.data)} files ({', '.join(self.data)}), one above 0"
            raise BadSetting("data_weights", weights, expected)

    @classmethod
    def from_file(cls, path: str | Path, overrides: Iterable[str] = ()) -> TrainingConfig:
        """Reads a YAML file, then applies `key=value` overrides (values are YAML too).

        Raises:
            UserInputError: the file or an override cannot be read, or a key is unknown.
        """
        values = read_yaml(path, "a training configuration")
        given = dict(_override(each) for each in overrides)
        for key, reason in _outlived(values, given):
            logger.info("%s=%s of %s left out: %s", key, values.pop(key), path, reason)
        sources = dict.fromkeys(values, str(path)) | dict.fromkeys(given, COMMAND_LINE)
        return cls.from_dict(values | given, source=str(path), sources=sources)

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], source: str = "configuration", sources: Mapping[str, str] | None = None
    ) -> TrainingConfig:
        """Sorts flat `key: value` pairs into own fields and training arguments.

        Args:
            source: where the values come from, for messages.
            sources: the same for single keys, where it differs.

        Raises:
            UserInputError: a key is unknown, one is missing, or a value is of the wrong type.
        """
        own = {each.name for each in dataclasses.fields(cls)} - {"arguments"}
        origins = dict.fromkeys(values, source) | dict(sources or {})
        for key in values:
            _refuse_unknown([key], own | (set(ARGUMENT_TYPES) - _RESERVED), f"{origins[key]}: ")
        if missing := {"model", "data", "output_dir"} - set(values):
            raise UserInputError(f"{source}: {', '.join(sorted(missing))} not given; see train/configs for examples")
        arguments = {key: _convert(key, value, origins[key]) for key, value in values.items() if key not in own}
        try:
            return cls(**{key: value for key, value in values.items() if key in own}, arguments=arguments)
        except BadSetting as error:
            raise UserInputError(f"{origins.get(error.key, source)}: {error}") from None

    def training_arguments(self) -> TrainingArguments:
        """What transformers' `Trainer` takes.

        Raises:
            UserInputError: `TrainingArguments` refuses a value.
        """
        arguments = DEFAULT_ARGUMENTS | self.arguments
        if arguments.get("bf16") == AUTO:
            device = torch.device("cpu") if arguments["use_cpu"] else resolve_device()
            arguments["bf16"] = multiplies_faster_in_half(device)
        try:
            return TrainingArguments(output_dir=self.output_dir, remove_unused_columns=False, **arguments)
        except (TypeError, ValueError) as error:
            raise UserInputError(f"the training arguments do not fit: {error}") from error


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The `key: value` lines of a YAML file.

    Args:
        what: is expected of it, for the message.

    Raises:
        UserInputError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserInputError(f"{path}: cannot be read ({error.strerror}); give {what}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserInputError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(values, dict):
        raise UserInputError(f"{path}: holds {type(values).__name__}, expected `key: value` lines")
    return values


def _override(text: str) -> tuple[str, Any]:
    """`key=value` → the key and the value, which is YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserInputError(f"override {text!r}: expected key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserInputError(f"override {text!r}: the value is not valid YAML; correct it") from None


def _outlived(values: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of a file that meant something only beside what is `given` anew, and why they go."""
    steps, warm_up = given.get("max_steps"), values.get("warmup_steps")
    too_long = isinstance(steps, int) and isinstance(warm_up, int) and 0 < steps <= warm_up
    conditions = {
        "data_weights": ("data" in given, "the files that it weighs are given anew"),
        "reward_weights": ("reward" in given, "the rewards that it weighs are given anew"),
        "media_beta": (given.get("denoising") is False, "no media are learned"),
        "media_weight": (given.get("denoising") is False, "no media are learned"),
        "desirable_weight": (given.get("objective") == "dpo", "only kto weighs answers"),
        "undesirable_weight": (given.get("objective") == "dpo", "only kto weighs answers"),
        "adapter": ("lora" in given, "its old spelling lora is given anew"),
        "lora": ("adapter" in given, "adapter is given anew"),
        "rope_parameters": ("rope_scaling" in given, "its old key rope_scaling is given anew"),
        "rope_scaling": ("rope_parameters" in given, "rope_parameters is given anew"),
        "max_steps": ("num_train_epochs" in given, "it would win over num_train_epochs"),
        "warmup_steps": (too_long, f"the whole run has {steps} steps"),
        "fp16": (given.get("bf16") in (True, AUTO), "bf16 is chosen instead"),
        "bf16": (given.get("fp16") is True, "fp16 is chosen instead"),
        "optim_args": ("optim" in given, "they are another optimizer's"),
        "optim_target_modules": ("optim" in given, "they are another optimizer's"),
        "lr_scheduler_kwargs": ("lr_scheduler_type" in given, "they are another schedule's"),
    }
    if given.get("train_sampling_strategy") == "sequential":
        conditions["data_weights"] = (True, "files that are taken as they stand are not weighed")
    for key, (outlived, reason) in conditions.items():
        if outlived and key in values and key not in given:
            yield key, reason


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserInputError(f"{where}unknown key {key!r}; {did_you_mean(key, known)}")


def _convert(key: str, value: Any, source: str) -> Any:
    """YAML reads `4e-4` as a string (it wants `4.0e-4`), and the word `no` as false; here they become what they say."""
    if value is False and key.endswith("_strategy"):
        return "no"
    if key in ("bf16", "fp16") and type(value) is not bool and (key, value) != ("bf16", AUTO):
        expected = "true, false or auto" if key == "bf16" else "true or false"
        raise UserInputError(f"{source}: {key} is {value!r}, expected {expected}")
    if ARGUMENT_TYPES[key] is not float or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserInputError(f"{source}: {key} is {value!r}, expected a number") from None
