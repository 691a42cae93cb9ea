"""Reads the checkpoints that the authors of NExT-GPT published into this model's own form, without the base weights.

Their first code (2023) kept one `pytorch_model.pt`: input projection, output projections, LoRA, and the whole embedding
and head with the added tokens' rows behind the base vocabulary. Its base is Vicuna 7B v0 (LLaMA 1), whose weights differ
from those of v1.5 (Llama 2): LoRA and projections trained on the one mean nothing on the other.

Their second code (2024) writes the signal tokens separated by spaces: n of them take 2n-1 positions, and the projection
was trained on the states of all of these. Here a run is n tokens and the projection sees n states, so its tensors would
load and be given something else than they learned from. Such checkpoints are refused.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from nextgpt.adapters import folder_name, peft_configuration, read_settings, weights_file
from nextgpt.checkpoint import STAGE_GROUPS, TRAINED_FILE
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError, UserInputError, first_line
from nextgpt.hub.download import SETTINGS
from nextgpt.hub.parts import fetch_model, fetch_repository, is_repository_name
from nextgpt.modalities import MODALITIES
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.signals import SignalVocabulary

CHECKPOINT_FILE = "pytorch_model.pt"
ADDED_TOKENS_FILE = "added_tokens.json"
FIRST_PREFIXES = {
    "llama_proj.": "input_projection.",
    "gen_text_hidden_fcs.0.": "output_projections.image.",
    "gen_text_hidden_fcs_video.0.": "output_projections.video.",
    "gen_text_hidden_fcs_audio.0.": "output_projections.audio.",
}
LLM_PREFIX = "llama_model."
ROWS = {"embed_tokens.weight": "signal_rows.input", "lm_head.weight": "signal_rows.output"}
SECOND_PREFIXES = ("mm_input_projector.", *(f"mm_output_{kind}_projector." for kind in ("img", "vid", "aud")))
BRACKETS = ("<Img>", "</Img>")  # around media in the first code's prompts
ADDED_ORDER = ("image", "video", "audio")  # the original's
V0_POSITIONS = 2048  # LLaMA 1; Llama 2 and thereby Vicuna v1.5 have 4096

STOP = "▁###"  # LLaMA's token for what ends an answer there
# How the first code wrote a conversation: "### Human: …\n### Assistant: …\n### Human: …".
FIRST_CHAT_TEMPLATE = (
    "{{ bos_token }}###"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' Human: ' + message['content'] + '\n### Assistant:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + '\n###' }}"
    "{% else %}{{ raise_exception('this model takes no system message') }}{% endif %}"
    "{% endfor %}"
)


class Unused(NamedTuple):
    """A tensor of the original that has no place here, and why."""

    key: str
    reason: str


@dataclass
class CheckpointReport:
    """The result of a conversion, tensor by tensor.

    Args:
        used: the original's key → this model's.
        unused: with the reason of each.
        missing: keys of this model that the original does not fill.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: list[Unused] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each key."""
        lines = [f"used     {key} → {own}" for key, own in self.used.items()]
        lines += [f"unused   {key}: {reason}" for key, reason in self.unused]
        return lines + [f"missing  {key}" for key in self.missing]


class IncompleteCheckpoint(UserInputError):
    """The original does not hold all that a checkpoint needs; `report` says what it holds."""

    def __init__(self, message: str, report: CheckpointReport):
        super().__init__(message)
        self.report = report


def convert_checkpoint(source: str | Path, out: str | Path, *, language_model: str, model: str = "7b") -> CheckpointReport:
    """Writes a checkpoint of the first code as a folder for `NextGPTForConditionalGeneration.from_pretrained`.

    Args:
        source: its `pytorch_model.pt`, or the folder that holds it (with `added_tokens.json`, where that was kept).
        out: folder to write.
        language_model: folder or repository of the base, Vicuna 7B v0.
        model: whose configuration names the encoder and the decoders.

    Raises:
        UserInputError: the checkpoint is of the second code, incomplete, or for another base.
        ModelLoadError: a file cannot be read.
    """
    file = Path(source) / CHECKPOINT_FILE if Path(source).is_dir() else Path(source)
    folder = Path(language_model).expanduser()
    if folder.is_dir():
        language_model = str(folder.resolve())  # relative paths would start from the new folder
    elif not is_repository_name(language_model):
        raise ModelLoadError(f"{language_model}: no such folder; name a folder of Vicuna 7B v0 with --language-model")
    tensors = _read(file)
    if second := [key for key in tensors if _after(key, SECOND_PREFIXES)]:
        raise _second_code(file, tensors, second)
    if not any(key.startswith((*FIRST_PREFIXES, LLM_PREFIX)) for key in tensors):
        raise UserInputError(
            f"{file}: no checkpoint of NExT-GPT: expected keys such as llama_proj.weight, found {', '.join([*tensors][:3])}"
        )
    config = _config(model, language_model, tensors)
    with torch.device("meta"):
        empty = NextGPTForConditionalGeneration(config)
    expected, lora = empty.trained_state(), empty.adapter.state()
    found, report = _sort(file, tensors, config)
    _compare(file, found, expected | lora, report)
    _save(Path(out), config, language_model, {name: found[name] for name in expected}, {name: found[name] for name in lora})
    return report


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ModelLoadError(f"{file}: no such file; give {CHECKPOINT_FILE} or the folder that holds it")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelLoadError(f"{file} cannot be read as tensors alone ({first_line(error)}): copy it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelLoadError(f"{file}: expected a dictionary of tensors; give the original's {CHECKPOINT_FILE}")
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def _after(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(f".{prefix}" in f".{key}" for prefix in prefixes)


def _second_code(file: Path, tensors: dict[str, Tensor], second: list[str]) -> IncompleteCheckpoint:
    why = "of the second code: trained on the states of 2n-1 positions, where this model has n"
    report = CheckpointReport(unused=[Unused(key, why if key in second else "of the second code") for key in tensors])
    return IncompleteCheckpoint(
        f"{file} is of the original's second code ({len(second)} projector tensors). There the signal tokens are separated "
        "by spaces, so that a run of n tokens takes 2n-1 positions, and its output projections learned from the states of "
        "all of them; here a run is n tokens and its projection sees n states. The tensors would load and draw noise. "
        "Convert a checkpoint of the first code, or train stage 2 (`nextgpt train decoders --config 7b`)",
        report,
    )


def _config(model: str, language_model: str, tensors: dict[str, Tensor]) -> NextGPTConfig:
    """The configuration of `model` on the base that the checkpoint was trained on."""
    config = NextGPTConfig.from_pretrained(fetch_model(model, patterns=["*.json"]))
    config.language_model = {"source": language_model, "license": "LLaMA 1 licence (non-commercial)"}
    config._text_config = None  # the base's own is read
    config._token_offset = len(_tokenizer(language_model))
    positions = getattr(config.text_config, "max_position_embeddings", 0)
    if "v1.5" in language_model or positions > V0_POSITIONS:
        raise UserInputError(
            f"{language_model} is not the base of this checkpoint: it was trained on Vicuna 7B v0 (LLaMA 1, "
            f"{V0_POSITIONS} positions), this one has {positions}, as Vicuna v1.5 (Llama 2). Its LoRA and projections mean "
            "nothing there. Name a folder of Vicuna 7B v0 with --language-model"
        )
    if not config.adapter or config.adapter["peft_type"] != "LORA":
        config.adapter = read_settings({"peft_type": "LORA"})
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key}
    if len(ranks) == 1:
        config.adapter = config.adapter | {"r": ranks.pop()}
    config.trained_groups = list(STAGE_GROUPS)
    return config


def _sort(file: Path, tensors: dict[str, Tensor], config: NextGPTConfig) -> tuple[dict[str, Tensor], CheckpointReport]:
    """Gives every tensor its name here, if it has one."""
    found, report = {}, CheckpointReport()
    vocabulary = SignalVocabulary.create(config.signal_tokens, config.input_modalities, config.token_offset)
    for key, tensor in tensors.items():
        prefix = next((each for each in FIRST_PREFIXES if key.startswith(each)), None)
        ending = next((each for each in ROWS if key.startswith(LLM_PREFIX) and key.endswith(each)), None)
        if prefix:
            name = FIRST_PREFIXES[prefix] + key.removeprefix(prefix)
        elif ending:
            name = ROWS[ending]
            tensor = tensor[_signal_ids(file, len(tensor), vocabulary, config)]
            report.unused.append(
                Unused(key, f"its rows for the base vocabulary and {', '.join(BRACKETS)}: the base keeps its own")
            )
        elif key.startswith(LLM_PREFIX) and "lora_" in key:  # as peft named it in the original
            name = key.removeprefix(LLM_PREFIX).replace(".default.", ".")
        else:
            report.unused.append(Unused(key, "this model takes it from the frozen parts"))
            continue
        found[name] = tensor.float().contiguous()
        report.used[key] = name
    return found, report


def _signal_ids(file: Path, rows: int, vocabulary: SignalVocabulary, config: NextGPTConfig) -> list[int]:
    """Where the signal tokens' rows stand in the original's matrices, in the order of this model's vocabulary."""
    names = {m: [MODALITIES[m].signal_token(i) for i in range(len(run))] for m, run in vocabulary.runs.items()}
    beside = file.with_name(ADDED_TOKENS_FILE)
    if beside.is_file():
        ids = json.loads(beside.read_text(encoding="utf-8"))
    else:
        added = [*BRACKETS, *(name for modality in ADDED_ORDER for name in names.get(modality, ()))]
        first = rows - len(added)
        # With or without the padding token that Vicuna v0 adds to LLaMA's vocabulary.
        if first not in (config.text_config.vocab_size, config.text_config.vocab_size - 1):
            raise UserInputError(
                f"{file}: {rows} rows of tokens, expected {config.text_config.vocab_size} of the base and {len(added)} "
                f"added ones; put the original's {ADDED_TOKENS_FILE} beside it"
            )
        ids = {name: first + i for i, name in enumerate(added)}
    wanted = [name for modality in vocabulary.runs for name in names[modality]]
    absent = [name for name in wanted if ids.get(name, rows) >= rows]
    if absent:
        raise UserInputError(f"{file}: no rows for the tokens {', '.join(absent)}: it was trained with fewer signal tokens")
    return [ids[name] for name in wanted]


def _compare(file: Path, found: dict[str, Tensor], expected: dict[str, Tensor], report: CheckpointReport) -> None:
    """Nothing may be missing, left over or of another shape."""
    for key, name in list(report.used.items()):
        if name not in expected:
            report.unused.append(Unused(key, f"this model has no {name}"))
            del report.used[key]
        elif found[name].shape != expected[name].shape:
            has, needs = list(found[name].shape), list(expected[name].shape)
            report.unused.append(Unused(key, f"has shape {has}, this model needs {needs}"))
            del report.used[key]
    filled = set(report.used.values())
    report.missing = [name for name in expected if name not in filled]
    if report.missing:
        raise IncompleteCheckpoint(
            f"{file} leaves {len(report.missing)} tensors of this model unfilled, {report.missing[0]} first: it is not of "
            "stage 3, or for another size of model",
            report,
        )


def _tokenizer(language_model: str) -> PreTrainedTokenizerBase:
    folder = language_model if Path(language_model).is_dir() else fetch_repository(language_model, patterns=[*SETTINGS])
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{language_model}: no tokenizer can be read there ({first_line(error)}); name a folder of Vicuna 7B v0"
        ) from error


def _save(out: Path, config: NextGPTConfig, base: str, trained: dict[str, Tensor], lora: dict[str, Tensor]) -> None:
    tokenizer = _tokenizer(base)
    ends = [tokenizer.eos_token_id, tokenizer.get_vocab().get(STOP)]
    processor = NextGPTProcessor(
        tokenizer,
        encoder_config=config.encoder_config,
        signal_tokens=config.signal_tokens,
        input_modalities=config.input_modalities,
        token_offset=config.token_offset,
        chat_template=FIRST_CHAT_TEMPLATE,
    )
    out.mkdir(parents=True, exist_ok=True)
    config.architectures = [NextGPTForConditionalGeneration.__name__]
    config.save_pretrained(out)
    processor.save_pretrained(out)
    eos = [token for token in ends if token is not None]
    GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos).save_pretrained(out)
    save_file(trained, out / TRAINED_FILE, metadata={"format": "pt"})
    adapter = peft_configuration(config.adapter)
    adapter.base_model_name_or_path, adapter.inference_mode = base, True
    adapter.save_pretrained(out / folder_name(config.adapter))
    save_file(lora, out / weights_file(config.adapter), metadata={"format": "pt"})
