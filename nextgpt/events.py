"""What a streamed answer is made of, and what is left of it at the end. Plain data, no behaviour but saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from nextgpt.decoders import Audio, Video

Media = Image.Image | Audio | Video


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
    """A piece of media is finished."""

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

    def _media(self, modality: str) -> list:
        return [part[modality] for part in self.message["content"] if part["type"] == modality]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in order."""
        return self._media("image")

    @property
    def audios(self) -> list[Audio]:
        """The sounds, in order: `array` (float32 samples) and `sampling_rate`."""
        return self._media("audio")

    @property
    def videos(self) -> list[Video]:
        """The clips, in order: `frames` (uint8 `[time, height, width, 3]`) and `fps`."""
        return self._media("video")

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
            path = folder / f"{name}-{len(files)}{SUFFIXES[modality]}"
            save_media(part[modality], path)
            files.append(path)
            content.append({"type": modality, "path": path.name, "seed": part["seed"]})
        message = {"role": "assistant", "content": content}
        record = {"message": message, "timings": asdict(self.timings), "switched_off": self.switched_off}
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


Event = TextDelta | MediaStarted | MediaProgress | MediaDone | Finished

SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".mp4"}


def save_media(media: Media, path: str | Path) -> None:
    """Writes a picture as PNG, a sound as 16-bit WAV, a clip as MP4 (H.264); by the media's type."""
    path = Path(path)
    if isinstance(media, Image.Image):
        media.save(path)
    elif isinstance(media, Audio):
        import soundfile

        soundfile.write(path, media.array, media.sampling_rate, subtype="PCM_16")
    else:
        _save_video(media, path)


def _save_video(video: Video, path: Path) -> None:
    from fractions import Fraction

    import av

    height, width = video.frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(1000))
        stream.width, stream.height = width + width % 2, height + height % 2  # H.264 needs even sizes
        stream.pix_fmt = "yuv420p"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
