"""A reward model: a small head on what a frozen NExT-GPT makes of a conversation, and on the encoder's embedding of each
medium that was made.

The score of an answer is `w · h_last`, as in transformers' sequence classification and so in TRL's reward models, and for
media the mean of a small network's output on (the medium's embedding, the mean hidden state of the answer): whether a
picture is the right one depends on what was said. Only the head is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError, NextGPTError, UserInputError
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.loading import check_parts
from nextgpt.hub.parts import fetch_model, preset_names
from nextgpt.modalities import MODALITIES
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.feature_cache import FeatureCache
from nextgpt.train.data.files import whole_file
from nextgpt.train.data.markers import parts_of
from nextgpt.train.judge.answers import state_of
from nextgpt.train.preferences.media_fit import MediaEmbedder
from nextgpt.train.preferences.pairs import answer_key, places_by_kinds, prompt_key, template_variables
from nextgpt.train.start import load_processor

SETTINGS_FILE, WEIGHTS_FILE = "reward.json", "reward.safetensors"
WIDTH = 64  # of the network that judges media
BATCH = 8  # answers that go through the LLM at once


class Answer(NamedTuple):
    """What is scored.

    Args:
        prompt, completion: chat messages.
        where: they stand, file and line.
        output_modalities: kinds that the answer could hold; None: all.
    """

    prompt: list[dict]
    completion: list[dict]
    where: str = ""
    output_modalities: list[str] | None = None

    @property
    def media(self) -> list[dict]:
        """The media that were made."""
        return [part for part in parts_of(self.completion[-1]["content"]) if part["type"] in MODALITIES]


class RewardHead(nn.Module):
    """Features of answers → scores.

    Args:
        hidden_size: of the LLM.
        embed_dim: of the encoder.
        width: of the network that judges media.
    """

    def __init__(self, hidden_size: int, embed_dim: int, width: int = WIDTH):
        super().__init__()
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.media = nn.Sequential(nn.Linear(embed_dim + hidden_size, width), nn.GELU(), nn.Linear(width, 1))
        nn.init.normal_(self.score.weight, std=(hidden_size + 1) ** -0.5)

    def forward(self, features: AnswerFeatures) -> Tensor:
        """`[answers]`."""
        scores = self.score(features.last).squeeze(-1)
        if not len(features.media):
            return scores
        judged = torch.cat([features.media * features.media.shape[-1] ** 0.5, features.mean[features.owners]], dim=-1)
        found = self.media(judged).squeeze(-1)
        counts = torch.bincount(features.owners, minlength=len(scores)).clamp(min=1)
        return scores + torch.zeros_like(scores).index_add(0, features.owners, found) / counts


@dataclass
class AnswerFeatures:
    """What the frozen parts make of answers; float32, on the CPU.

    Args:
        last: the LLM's last hidden state at the conversation's last token: `[answers, hidden]`.
        mean: its mean over the answer's tokens: `[answers, hidden]`.
        media: embeddings of length 1 of the media that were made: `[media, embed_dim]`.
        owners: whose each medium is: `[media]`.
    """

    last: Tensor
    mean: Tensor
    media: Tensor
    owners: Tensor

    def __getitem__(self, rows: Sequence[int]) -> AnswerFeatures:
        """Those of some answers."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        owned = [(self.owners == row).nonzero().flatten() for row in rows.tolist()]
        owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(each) for each in owned]))
        media = self.media[torch.cat(owned)] if len(owned) else self.media[:0]
        return AnswerFeatures(self.last[rows], self.mean[rows], media, owners)


class RewardModel:
    """Scores answers; a reward function, too, with the signature of `nextgpt.train.preferences.rewards`.

    Args:
        model, processor: frozen.
        head: trained.
        name: of the model, as it was given.
    """

    def __init__(self, model: NextGPTForConditionalGeneration, processor: NextGPTProcessor, head: RewardHead, name: str):
        self.model, self.processor, self.head, self.name = model.requires_grad_(False).eval(), processor, head.eval(), name
        self.embedder = MediaEmbedder(model.encoder, processor)

    @classmethod
    def from_parts(cls, name: str, device: str = "auto", dtype: str = "auto") -> RewardModel:
        """A model with a head that was not trained.

        Raises:
            ModelLoadError: the model cannot be had.
        """
        location = fetch_model(name)
        config = NextGPTConfig.from_pretrained(location)
        check_parts(config, location, name)
        where = resolve_device(device)
        model = NextGPTForConditionalGeneration.from_pretrained(location, dtype=resolve_dtype(dtype, where)).to(where)
        head = RewardHead(config.text_config.hidden_size, model.encoder.embed_dim)
        return cls(model, load_processor(location, config), head, name)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto", dtype: str = "auto") -> RewardModel:
        """A reward model that `nextgpt train reward` saved.

        Raises:
            ModelLoadError: the folder holds none, or the model that it was trained on is gone or another one now.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            name, trained_on = os.fspath(settings["model"]), settings["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ModelLoadError(
                f"{folder}: no reward model ({SETTINGS_FILE} is not there or broken); `nextgpt train reward` makes one"
            ) from None
        name = os.path.normpath(folder / name) if settings.get("is_folder") else name
        try:
            found = state_of(name)
        except NextGPTError as error:
            raise ModelLoadError(f"{folder}: the model that it was trained on is not there ({error})") from None
        if found != trained_on:
            raise ModelLoadError(f"{folder}: was trained on other weights than {name} has now; train the reward model anew")
        reward = cls.from_parts(name, device, dtype)
        try:
            reward.head.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelLoadError(
                f"{folder / WEIGHTS_FILE}: not the head of this model ({str(error).splitlines()[0]})"
            ) from None
        return reward

    def save_pretrained(self, folder: str | Path, **facts: Any) -> None:
        """Writes the head, and which model it belongs to; `facts` stand beside."""
        folder = Path(folder)
        is_folder = self.name not in preset_names() and Path(self.name).expanduser().is_dir()
        name = os.path.relpath(Path(self.name).expanduser(), folder) if is_folder else self.name
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS_FILE) as beside:
            save_file({key: tensor.contiguous() for key, tensor in self.head.state_dict().items()}, beside)
        settings = {"model": name, "is_folder": is_folder, "fingerprint": state_of(self.name)} | facts
        with whole_file(folder / SETTINGS_FILE) as beside:
            beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[list[dict]],
        completions: Sequence[list[dict]],
        output_modalities: Sequence[list[str] | None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The score of each completion; only differences between answers to one prompt mean something.

        Args:
            output_modalities: for each completion, the kinds that it could hold; None: all.
        """
        return self.head(self.features(prompts, completions, output_modalities)).tolist()

    def features(
        self,
        prompts: Sequence[list[dict]],
        completions: Sequence[list[dict]],
        output_modalities: Sequence[list[str] | None] | None = None,
    ) -> AnswerFeatures:
        """What the frozen parts make of answers; arguments as of a call.

        Raises:
            UserInputError: a message or a medium is not what it should be, or a conversation is too long.
        """
        kinds = output_modalities or [None] * len(prompts)
        rows = zip(prompts, completions, kinds, strict=True)
        answers = [Answer(prompt, completion, output_modalities=own) for prompt, completion, own in rows]
        states: dict[int, dict[str, Tensor]] = {}
        for places in _batches(answers):
            states |= zip(places, self._states([answers[place] for place in places]), strict=True)
        return self._joined([states[place] for place in range(len(answers))], answers)

    def cached_features(self, answers: Sequence[Answer], folder: Path, description: str) -> AnswerFeatures:
        """As [`features`], under a progress bar; what an earlier run put into the folder is not computed again.

        Raises:
            UserInputError: an answer cannot be read; it is named by where it stands.
        """
        identity = {"model": state_of(self.name), "dtype": str(self.model.get_base_model().dtype)}
        cache = FeatureCache(folder, "answers", identity, accept_stale=True)
        for answer in answers:
            try:
                self.embedder.check_kinds([part["type"] for part in answer.media])
            except UserInputError as error:
                raise UserInputError(f"{answer.where}: {error}") from None
        keys = [_key(answer) for answer in answers]
        by_key = dict(zip(keys, answers, strict=True))
        missing = cache.missing(keys)
        with tqdm(desc=description, total=len(by_key), initial=len(by_key) - len(missing), unit=" answers") as bar:
            for places in _batches([by_key[key] for key in missing]):
                some = [missing[place] for place in places]
                cache.add(dict(zip(some, self._told_apart([by_key[key] for key in some]), strict=True)))
                bar.update(len(some))
        return self._joined(cache.rows(keys), answers)

    def _told_apart(self, answers: Sequence[Answer]) -> list[dict[str, Tensor]]:
        """The states of answers; where it goes wrong, each by itself, to name the one."""
        try:
            return self._states(answers)
        except UserInputError:
            for answer in answers:
                try:
                    self._states([answer])
                except UserInputError as error:
                    raise UserInputError(f"{answer.where}: {error}") from None
            raise

    @torch.no_grad()
    def _states(self, answers: Sequence[Answer]) -> list[dict[str, Tensor]]:
        """The hidden states of answers that go through the LLM together, see `_batches`: `last` and `mean`, `[hidden]`."""
        recorded: list[Tensor] = []
        conversations = [[*answer.prompt, *answer.completion] for answer in answers]
        said = [[{name: message[name] for name in ("role", "content")} for message in each] for each in conversations]
        inputs = self.processor(
            said,
            add_generation_prompt=False,
            template_kwargs=template_variables(answers[0].output_modalities, self.processor.vocabulary),
            return_labels=True,
            padding_side="right",
            max_length=self.model.config.max_positions,
        )
        labels = inputs.pop("labels")
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        self.model(**inputs, use_cache=False, logits_to_keep=1, signal_recorder=lambda states, _: recorded.append(states))
        found = []
        for states, mask, row in zip(recorded[0].float().cpu(), inputs["attention_mask"].cpu(), labels, strict=True):
            written = (row != IGNORED_LABEL).nonzero().flatten()
            begins = (written.diff() > 1).nonzero().flatten()  # of all turns but the first
            answer = written[begins[-1] + 1 :] if len(begins) else written
            found.append({"last": states[mask.nonzero().max()], "mean": states[answer].mean(0)})
        return found

    def _joined(self, states: Sequence[dict[str, Tensor]], answers: Sequence[Answer]) -> AnswerFeatures:
        made = [answer.media for answer in answers]
        counts = torch.tensor([len(parts) for parts in made], dtype=torch.long)
        return AnswerFeatures(
            torch.stack([each["last"] for each in states]),
            torch.stack([each["mean"] for each in states]),
            self.embedder.media([part for parts in made for part in parts]),
            torch.repeat_interleave(torch.arange(len(made)), counts),
        )


def _key(answer: Answer) -> bytes:
    """Of what the frozen parts make of an answer."""
    said = f"{prompt_key(answer.prompt, True)} {answer_key(answer.completion[-1])}"
    kinds = f" {' '.join(sorted(answer.output_modalities))}" if answer.output_modalities else ""
    return hashlib.sha256(f"{said}{kinds}".encode()).digest()


def _batches(answers: Sequence[Answer]) -> Iterator[list[int]]:
    """The places of answers that go through the LLM at once: those that could hold the same kinds."""
    grouped = places_by_kinds([answer.output_modalities for answer in answers])
    return (places[start : start + BATCH] for places in grouped for start in range(0, len(places), BATCH))
