"""The options of a call: their defaults, and what they must be."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches

from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES

MAX_SEED = 2**31


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
    media: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self._check("max_new_tokens", isinstance(self.max_new_tokens, int) and self.max_new_tokens > 0, "1 or more")
        self._check("temperature", _is_number(self.temperature) and self.temperature > 0, "a number above 0")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0, at most 1")
        self._check("seed", self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**62), "0 or more")
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
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; the options are {', '.join(known)}"
                raise UserInputError(f"unknown option {name!r}{hint}")
        media = {name: given for name, given in options.items() if name in MODALITIES}
        return cls(**{name: given for name, given in options.items() if name in own}, media=media)

    def of_decoder(self, modality: str) -> dict:
        """The options of one decoder."""
        return self.media.get(modality, {})

    def sampling(self) -> dict:
        """The arguments of transformers' `generate`."""
        if not self.do_sample:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
