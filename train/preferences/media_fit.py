"""The reward for media that fit what was asked for, by the encoder's own similarity; and the embeddings it is made of.

How an encoder can judge it depends on the encoder:

- One with a text tower (ImageBind's) compares the embedding of each medium with that of the words that asked for it.
- One without (nano's, open_clip's vision tower, SigLIP's) can compare media with media alone. The data then name media that
  show what is asked for, in the column `references`: `[{"type": "image", "path": "cats/1.png"}, …]`. With several of a kind
  their mean counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import UserInputError
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.loading import check_parts, load_frozen_encoder
from nextgpt.hub.parts import fetch_model
from nextgpt.modalities import MODALITIES, check_known
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.data.markers import words_of
from nextgpt.train.start import load_processor

TEXT = "text"  # the name of a text tower's kind
WORST = -1.0  # of a medium that is not there: the least that a cosine can be
BATCH = 32  # media that are encoded at once
REMEMBERED = 4096  # embeddings of files


class MediaEmbedder:
    """A frozen encoder's embeddings of media and, where it has a text tower, of words.

    Args:
        encoder, processor: of a model.
    """

    def __init__(self, encoder: nn.Module, processor: NextGPTProcessor):
        self.encoder, self.processor = encoder, processor
        self._remembered: dict[tuple, Tensor] = {}

    @classmethod
    def from_pretrained(cls, name: str, device: str = "auto", dtype: str = "auto") -> MediaEmbedder:
        """The encoder of a model, without the rest of it.

        Raises:
            ModelLoadError: it cannot be had.
        """
        location = fetch_model(name)
        config = NextGPTConfig.from_pretrained(location)
        check_parts(config, location, name)
        where = resolve_device(device)
        encoder = load_frozen_encoder(config, resolve_dtype(dtype, where))
        return cls(encoder.to(where), load_processor(location, config))

    @property
    def has_text(self) -> bool:
        """Whether words have embeddings in the same space."""
        return TEXT in self.encoder.modalities

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Raises UserInputError for a kind that the encoder has no embedding of."""
        for kind in kinds:
            if kind not in self.encoder.modalities:
                known = ", ".join(self.encoder.modalities)
                raise UserInputError(f"the encoder has no embedding of {MODALITIES[kind].article}; it takes {known}")

    def media(self, parts: Sequence[dict]) -> Tensor:
        """Media parts, by path, address or ready-made, → embeddings of length 1, float32 on the CPU: `[parts, embed_dim]`.

        Raises:
            UserInputError: a medium cannot be read, or the encoder does not take its kind.
        """
        self.check_kinds([part["type"] for part in parts])
        found: list[Tensor | None] = [self._remembered.get(key) if (key := _key(part)) else None for part in parts]
        for kind in dict.fromkeys(part["type"] for part in parts):
            missing = [i for i, part in enumerate(parts) if part["type"] == kind and found[i] is None]
            for start in range(0, len(missing), BATCH):
                some = missing[start : start + BATCH]
                values = torch.stack([self.processor.prepare_media(kind, _medium(parts[i])) for i in some])
                for i, embedding in zip(some, self._encode(kind, values), strict=True):
                    found[i] = embedding
                    self._remember(parts[i], embedding)
        return torch.stack(found) if found else torch.zeros(0, self.encoder.embed_dim)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Words → embeddings of length 1, float32 on the CPU: `[texts, embed_dim]`."""
        return self._encode(TEXT, self.processor.preprocessor.prepare(TEXT, list(texts)))

    def _encode(self, kind: str, values: Tensor) -> Tensor:
        return F.normalize(self.encoder.encode(kind, values).float().cpu(), dim=-1)

    def _remember(self, part: dict, embedding: Tensor) -> None:
        if key := _key(part):
            while len(self._remembered) >= REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = embedding


class MediaFit:
    """The reward function `media_fit`; see the module.

    Args:
        embedder: judges.
    """

    def __init__(self, embedder: MediaEmbedder):
        self.embedder = embedder

    def __call__(
        self,
        prompts: Sequence[list[dict]],
        completions: Sequence[list[dict]],
        references: Sequence[list[dict] | None] | None = None,
        asked: Sequence[str | Mapping[str, str] | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The mean cosine, -1 to 1, of the made media with what was asked for; None where nothing says what that is.

        A kind that the data name, by `references` or by `asked`, and the answer lacks counts -1, and so does another kind.

        Args:
            references: for each completion, media that show what is asked for.
            asked: for a text tower: what is asked for, as kind → words; or words alone, by default the user's last ones,
                which do not say that there has to be a medium: an answer without one gets None then.

        Raises:
            UserInputError: there are no references, and the encoder knows no words.
        """
        if references is None and not self.embedder.has_text:
            raise UserInputError(
                "media_fit: the encoder has no text tower, so the data must name media that show what is asked for: the "
                'column references, e.g. "references": [{"type": "image", "path": "cats/1.png"}] beside the messages'
            )
        references, asked = references or [None] * len(completions), asked or [None] * len(completions)
        rows = zip(prompts, completions, references, asked, strict=True)
        return [self._fit(prompt, completion[-1], shown, words) for prompt, completion, shown, words in rows]

    def _fit(
        self, prompt: list[dict], message: dict, shown: list[dict] | None, words: str | Mapping[str, str] | None
    ) -> float | None:
        content = message["content"] if isinstance(message["content"], list) else []
        made = [part for part in content if part["type"] in MODALITIES]
        if shown:
            wanted = self._by_kind(_checked(shown))
            targets = {kind: F.normalize(embeddings.mean(0), dim=-1) for kind, embeddings in wanted.items()}
            kinds = dict.fromkeys([*targets, *(part["type"] for part in made)])
        elif self.embedder.has_text and (made or isinstance(words, Mapping)):
            kinds = dict.fromkeys(part["type"] for part in made)
            said = words_of(prompt[-1]) if words is None else words
            texts = said if isinstance(said, Mapping) else dict.fromkeys(kinds, said)
            check_known(texts, "the column asked names")
            targets = {kind: self.embedder.texts([text])[0] for kind, text in texts.items() if text.strip()}
            kinds |= dict.fromkeys(targets)
        else:
            return None
        if not targets:
            return None
        given = self._by_kind([part for part in made if part["type"] in targets])
        fits = [(given[kind] @ targets[kind]).mean().item() if kind in given else WORST for kind in kinds]
        return sum(fits) / len(fits)

    def _by_kind(self, parts: Sequence[dict]) -> dict[str, Tensor]:
        """Kind → the embeddings of its media: `[n, embed_dim]`."""
        kinds = dict.fromkeys(part["type"] for part in parts)
        return {kind: self.embedder.media([part for part in parts if part["type"] == kind]) for kind in kinds}


def _checked(references: Any) -> list[dict]:
    is_list = isinstance(references, list) and all(isinstance(part, dict) for part in references)
    if not is_list or not all(part.get("type") in MODALITIES for part in references):
        raise UserInputError(f"the column references holds {str(references)[:60]}; expected a list of media parts")
    return references


def _medium(part: dict) -> Any:
    """What `load_media` takes of a part."""
    given = [part[name] for name in ("path", "url", part["type"]) if part.get(name) is not None]
    if not given:
        raise UserInputError(f"{MODALITIES[part['type']].article} has no file: its fit cannot be seen; give its path")
    return given[0]


def _key(part: dict) -> tuple | None:
    """The name of a file's content as it is now; None where it is no file."""
    try:
        status = os.stat(part["path"])
    except (KeyError, TypeError, OSError, ValueError):
        return None
    return part["type"], str(part["path"]), status.st_size, status.st_mtime_ns
