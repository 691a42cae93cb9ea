"""The kinds of media: one row each. Everything that differs from kind to kind stands here or is named here.

A program that brings a kind of its own calls [`register_modality`] with its row, before it names the kind anywhere. The
encoder that takes such media and the decoder that makes them come with `register_encoder` and `register_decoder`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nextgpt.errors import UserInputError

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SIGNAL = re.compile(r"[A-Z]+")
# What stands beside the names of kinds: in a message, a part of a model, a reply, an option of a call or of a command.
RESERVED = frozenset(
    "text type path url base64 caption seed seconds language_model encoder message finished timings token_ids switched_off "
    "save media max_new_tokens output_modalities require do_sample temperature top_p session cancel command prompt model "
    "preset device dtype steps guidance_scale out only json debug help prepare modalities".split()
)


@dataclass(frozen=True)
class Modality:
    """One kind of media.

    Args:
        name: in messages, configurations and options.
        plural: of its list in a reply, and of the folders that data sets keep it in.
        article: the name for a person, as `an image`.
        signal: what its signal tokens begin with: `IMG` for `[IMG0] [IMG1] …`.
        signal_tokens: how many of them make a run, where a configuration does not say it.
        suffixes: usual ones of its files, without the dot; the first is that of the files that are written.
        formats: what to give, for messages, as `a WAV or MP3 file`.
        read: an open file and its name → one medium. A tuple where several arrays make it (samples and their rate): an
            encoder's preprocessing takes them one by one. Raises `UserInputError` for what it does not take.
        ready: the same, from what a program gives in place of a file.
        save: writes one medium to a path that ends in the first suffix.
        recognizes: whether an open file, with its name, is of this kind by what it holds; None: a message must say so.
        described: in messages, where it is not `article`.
        max_seconds: the longest that `read` takes, which calls `nextgpt.media.limits.check_duration`; None: no limit.
        too_small: what a medium too small to learn from measures and what to do; None for all others.
        player, large_player: HTML that shows a file in a browser, with `{address}` and `{label}`; without a `large_player`
            it is not enlarged.
        uploads: what the browser offers to open; by default files with one of the suffixes.
        recorder: what the browser may record it with.
        still: one medium → a `PIL.Image` that stands for it.
    """

    name: str
    plural: str
    article: str
    signal: str
    signal_tokens: int
    suffixes: tuple[str, ...]
    formats: str
    read: Callable[[BinaryIO, str], Any]
    ready: Callable[[Any], Any]
    save: Callable[[Any, Path], None]
    recognizes: Callable[[BinaryIO, str], bool] | None = None
    described: str = ""
    max_seconds: float | None = None
    too_small: Callable[[Any], str | None] | None = None
    player: str = '<a href="{address}" download>{label}</a>'
    large_player: str | None = None
    uploads: tuple[str, ...] = ()
    recorder: str | None = None
    still: Callable[[Any], Any] | None = None

    def __post_init__(self):
        object.__setattr__(self, "described", self.described or self.article)
        object.__setattr__(self, "uploads", self.uploads or tuple(f".{suffix}" for suffix in self.suffixes))

    @property
    def placeholder(self) -> str:
        """The token that stands for one medium in a prompt."""
        return f"<|{self.name}|>"

    @property
    def suffix(self) -> str:
        """Of the files that are written."""
        return f".{self.suffixes[0]}"

    def signal_token(self, index: int) -> str:
        """The token at a place of a run."""
        return f"[{self.signal}{index}]"


def _later(module: str, function: str) -> Callable:
    """A function of `nextgpt.media` that is imported when it is called, so that `nextgpt --help` need not wait for it."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"nextgpt.media.{module}"), function)(*arguments)

    return call


_BUILT_IN = (
    Modality(
        name="image",
        plural="images",
        article="an image",
        described="a picture",
        signal="IMG",
        signal_tokens=4,
        suffixes=("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"),
        formats="a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file",
        read=_later("images", "read_image"),
        ready=_later("images", "ready_image"),
        save=_later("images", "save_image"),
        recognizes=_later("kinds", "is_picture"),
        too_small=_later("images", "too_few_pixels"),
        player='<img src="{address}" alt="{label}">',
        large_player='<img src="{address}" alt="{label}" loading="lazy">',
        uploads=("image",),
        still=_later("stills", "picture"),
    ),
    Modality(
        name="audio",
        plural="audios",
        article="a sound",
        signal="AUD",
        signal_tokens=8,
        suffixes=("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"),
        formats="a WAV, FLAC, OGG, MP3 or M4A file",
        read=_later("audio", "read_audio"),
        ready=_later("audio", "ready_audio"),
        save=_later("audio", "save_audio"),
        recognizes=_later("kinds", "is_sound"),
        max_seconds=600,
        too_small=_later("limits", "too_short"),
        player='<audio src="{address}" aria-label="{label}" controls preload="metadata"></audio>',
        uploads=("audio",),
        recorder="microphone",
        still=_later("stills", "wave"),
    ),
    Modality(
        name="video",
        plural="videos",
        article="a video",
        signal="VID",
        signal_tokens=24,
        suffixes=("mp4", "m4v", "mov", "webm", "mkv", "avi"),
        formats="an MP4, MOV, WebM, AVI or GIF file",
        read=_later("video", "read_video"),
        ready=_later("video", "ready_video"),
        save=_later("video", "save_video"),
        recognizes=_later("kinds", "is_clip"),
        max_seconds=600,
        too_small=_later("limits", "too_short"),
        player='<video src="{address}" aria-label="{label}" autoplay loop muted playsinline preload="auto"></video>',
        large_player='<video src="{address}" aria-label="{label}" controls autoplay loop muted playsinline></video>',
        uploads=("video",),
        still=_later("stills", "strip"),
    ),
)
# Name → row. The order is that of the signal tokens' ids: those of the package as above, then others by their names.
BUILT_IN = tuple(row.name for row in _BUILT_IN)
MODALITIES: dict[str, Modality] = {row.name: row for row in _BUILT_IN}


def register_modality(modality: Modality) -> Modality:
    """Adds a kind of media of one's own, for the whole process; once more the same is nothing new.

    The processes that read a training's data are told of it, so the functions of the row are named ones of a module.

    Raises:
        ValueError: its name, its plural or its signal tokens are another's, or cannot be ones.
    """
    from torch.nn import ModuleDict

    name = modality.name
    is_reserved = name in RESERVED or hasattr(ModuleDict(), name)  # in which the model keeps its projections by name
    if not _NAME.fullmatch(name) or is_reserved:
        why = "means something else in a message, a call or a model" if is_reserved else "is not made of a-z, 0-9 and _"
        raise ValueError(f"The modality '{name}' cannot be called so, because that {why}. Choose another name.")
    if not _SIGNAL.fullmatch(modality.signal) or modality.signal_tokens < 1 or not modality.suffixes:
        raise ValueError(
            f"The modality '{name}' has the signal {modality.signal!r}, {modality.signal_tokens} signal tokens and the "
            f"suffixes {list(modality.suffixes)}: expected capitals, at least 1, and at least one suffix."
        )
    if modality.plural in RESERVED:
        raise ValueError(f"The plural '{modality.plural}' of the modality '{name}' has another meaning. Choose another.")
    for row in MODALITIES.values():
        if row == modality:
            return modality
        for what in ("name", "plural", "signal"):
            value = getattr(modality, what)
            if value in (row.name, row.plural, row.signal):
                raise ValueError(f"The {what} '{value}' of the modality '{name}' is taken by '{row.name}'. Choose another.")
    own = sorted([*registered_modalities(), modality], key=lambda row: row.name)
    for row in own:  # again in the order of their names
        MODALITIES.pop(row.name, None)
    MODALITIES.update({row.name: row for row in own})
    return modality


def registered_modalities() -> list[Modality]:
    """The rows that programs brought."""
    return [row for row in MODALITIES.values() if row not in _BUILT_IN]


def take_values(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes `<modality>_values`, what the processor made of media, out of keyword arguments."""
    return {name: arguments.pop(name) for name in [f"{modality}_values" for modality in MODALITIES] if name in arguments}


def check_known(names: Iterable[str], what: str) -> None:
    """Refuses kinds that are not in the table.

    Args:
        what: names them, as `decoders for`.

    Raises:
        UserInputError: one is not.
    """
    if unknown := sorted(set(names) - set(MODALITIES)):
        raise UserInputError(
            f"{what} {', '.join(unknown)}: the modalities are {', '.join(MODALITIES)}; a program that brings another calls "
            "nextgpt.register_modality first"
        )
