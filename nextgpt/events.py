"""What a call takes and gives: its options, the events of a stream, the reply. Plain data, no behaviour but saving."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from nextgpt.decoders import Audio, Video
from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.modalities import MODALITIES

Media = Image.Image | Audio | Video | Any  # the last of a plug-in's kind
MAX_SEED = 2**31
COLDEST = 1e-3  # below, the likeliest token is all that is left, and scores divided by it are no numbers any more


@dataclass
class GenerationOptions:
    """The options of a call, by keyword.

    Args:
        max_new_tokens: per answer.
        output_modalities: kinds that are made, e.g. `("text", "image")`; all by default. No other kind comes instead of
            one that is left out: the answer lacks it, and `Reply.switched_off` says so.
        require: modality → how many the answer must hold, exactly, e.g. `{"image": 1}`; no other kinds then.
        do_sample, temperature, top_p: sampling of the LLM; greedy by default.
        seed: of the sampling and of the first piece of media (the next takes seed + 1 …); random by default.
        deadline: seconds from the call's beginning after which the answer stops, with a `DeadlineExceeded`; None: never.
        media: modality → options of its decoder (`num_inference_steps`, `guidance_scale`, `height` …). In a call each
            stands under the modality's own name, as `image={"num_inference_steps": 20}`.
    """

    max_new_tokens: int = 256
    output_modalities: Sequence[str] | None = None
    require: dict[str, int] | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    deadline: float | None = None
    media: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self._check("max_new_tokens", isinstance(self.max_new_tokens, int) and self.max_new_tokens > 0, "1 or more")
        fits = _is_number(self.temperature) and 0 < self.temperature < math.inf
        self._check("temperature", fits, "a number above 0")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0, at most 1")
        self._check("seed", self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**62), "0 or more")
        fits = self.deadline is None or (_is_number(self.deadline) and self.deadline > 0)
        self._check("deadline", fits, "seconds, a number above 0")
        counts = self.require.values() if isinstance(self.require, dict) else ()
        fits = self.require is None or isinstance(self.require, dict)
        fits = fits and all(isinstance(count, int) and count >= 0 for count in counts)
        self._check("require", fits, 'modality and how many, e.g. {"image": 1}')
        kinds = self.output_modalities
        self._check("output_modalities", kinds is None or isinstance(kinds, (list, tuple, set)), "a list of kinds")
        for modality, given in self.media.items():
            if not isinstance(given, dict):
                raise UserInputError(f"{modality} is {given!r}: expected a dictionary of the decoder's options")
        if self.seed is None:
            self.seed = secrets.randbelow(MAX_SEED)

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise UserInputError(f"{name} is {getattr(self, name)!r}: expected {expected}")

    @classmethod
    def from_keywords(cls, options: dict) -> GenerationOptions:
        own = [each.name for each in fields(cls) if each.name != "media"]
        known = [*own, *MODALITIES]
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known, f"the options are {', '.join(known)}")
                raise UserInputError(f"unknown option {name!r}; {hint}")
        media = {name: given for name, given in options.items() if name in MODALITIES}
        return cls(**{name: given for name, given in options.items() if name in own}, media=media)

    def of_decoder(self, modality: str) -> dict:
        """The options of one decoder."""
        return self.media.get(modality, {})

    @property
    def samples(self) -> bool:
        """Whether the LLM's tokens are drawn; else the likeliest are taken."""
        return self.do_sample and self.temperature >= COLDEST


@dataclass
class TextDelta:
    """A piece of text, to be appended to what came before."""

    text: str


@dataclass
class MediaStarted:
    """The LLM has emitted a run of signal tokens; its decoder begins. `index` counts the answer's media from 0."""

    index: int
    modality: str
    seed: int


@dataclass
class MediaProgress:
    """One diffusion step is done. `preview()` gives a rough picture of the current state, where the decoder has one."""

    index: int
    modality: str
    step: int
    total: int
    preview: Callable[[], Image.Image] | None = None


@dataclass
class MediaDone:
    """A piece of media is finished; `seconds` is its share of the time that its decoder's batch took."""

    index: int
    modality: str
    media: Media
    seed: int
    seconds: float


@dataclass
class Timings:
    """Where the time of an answer went; seconds, tokens.

    Args:
        prompt_tokens: of the whole conversation, of which `cached_tokens` were still in the session's cache.
        new_tokens: emitted by the LLM, forced signal tokens included.
        prepare: reading and encoding the media and the text.
        first_token: from the call to the first token.
        generate: the LLM's share.
        media: modality and seconds of each piece of media.
        total: the whole answer.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    prepare: float = 0.0
    first_token: float = 0.0
    generate: float = 0.0
    media: list[tuple[str, float]] = field(default_factory=list)
    total: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.generate if self.generate else 0.0


@dataclass
class Reply:
    """An answer.

    Args:
        message: the assistant's message in the chat format, ready to be appended to the conversation.
        finished: whether it ended by itself (not by `max_new_tokens` or a cancel).
        timings: where the time went.
        token_ids: what the LLM emitted.
        switched_off: kinds that it called for and `output_modalities` leaves out, each once; they are not in the message.
    """

    message: dict[str, Any]
    finished: bool = True
    timings: Timings = field(default_factory=Timings)
    token_ids: list[int] = field(default_factory=list)
    switched_off: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text of the answer."""
        return " ".join(part["text"].strip() for part in self.message["content"] if part["type"] == "text")

    def media(self, modality: str) -> list:
        """All of one kind, in order."""
        return [part[modality] for part in self.message["content"] if part["type"] == modality]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in order."""
        return self.media("image")

    @property
    def audios(self) -> list[Audio]:
        """The sounds, in order: `array` (float32 samples) and `sampling_rate`."""
        return self.media("audio")

    @property
    def videos(self) -> list[Video]:
        """The clips, in order: `frames` (uint8 `[time, height, width, 3]`) and `fps`."""
        return self.media("video")

    def __getattr__(self, name: str) -> list:
        """Those of a plug-in's kind, by its plural."""
        for modality, row in MODALITIES.items():
            if row.plural == name:
                return self.media(modality)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def save(self, folder: str | Path, name: str = "answer") -> list[Path]:
        """Writes the media and `<name>.json` (the message, with paths in place of media; timings; what was switched off).

        Returns:
            The files written, the JSON file last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content, files = [], []
        for part in self.message["content"]:
            modality = part["type"]
            if modality == "text":
                content.append(part)
                continue
            row = MODALITIES[modality]
            path = folder / f"{name}-{len(files)}{row.suffix}"
            row.save(part[modality], path)
            files.append(path)
            content.append({"type": modality, "path": path.name, "seed": part["seed"]})
        message = {"role": "assistant", "content": content}
        record = {"message": message, "finished": self.finished, "timings": asdict(self.timings)}
        record |= {"switched_off": self.switched_off}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return [*files, path]


@dataclass
class Finished:
    """The last event of a stream: the whole reply."""

    reply: Reply


def not_made(kinds: Sequence[str]) -> str:
    """What a person is told beside an answer of these kinds that it called for and that are switched off."""
    return f"Not made, because switched off: {', '.join(kinds)}."


@dataclass
class ServedBy:
    """Before all others where an answer comes from one of several machines: which one."""

    node: str


Event = TextDelta | MediaStarted | MediaProgress | MediaDone | Finished | ServedBy


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
