"""Frozen diffusion decoders: conditioning in, media out; captions in, training targets out.

Conditioning is a dictionary of named tensors (see `contract`). A new decoder is one small file with a `Decoder` subclass
and one line in `DECODERS`; a program that brings its own calls `register_decoder`.
"""

import torch

from nextgpt.decoders.audioldm import AudioLDMDecoder
from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import (
    Conditioning,
    ConditioningSpec,
    GenerationCancelled,
    Size,
    TensorSpec,
    check_conditioning,
    describe_shapes,
    projected_shapes,
)
from nextgpt.decoders.latte import LatteDecoder
from nextgpt.decoders.media import Audio, Video
from nextgpt.decoders.spectrograms import SpectrogramDecoder
from nextgpt.decoders.stable_audio import StableAudioDecoder
from nextgpt.decoders.stable_diffusion import StableDiffusionDecoder, StableDiffusionXLDecoder
from nextgpt.decoders.stable_diffusion_3 import StableDiffusion3ClipDecoder, StableDiffusion3Decoder
from nextgpt.decoders.text_to_video import TextToVideoDecoder
from nextgpt.decoders.wan import WanDecoder

__all__ = [
    "DECODERS",
    "Audio",
    "Conditioning",
    "ConditioningSpec",
    "Decoder",
    "GenerationCancelled",
    "Size",
    "TensorSpec",
    "Video",
    "check_conditioning",
    "conditioning_spec",
    "describe_shapes",
    "load_decoder",
    "projected_shapes",
    "register_decoder",
]

DECODERS: dict[str, type[Decoder]] = {
    decoder.kind: decoder
    for decoder in (
        StableDiffusionDecoder,
        StableDiffusionXLDecoder,
        StableDiffusion3Decoder,
        AudioLDMDecoder,
        StableAudioDecoder,
        SpectrogramDecoder,
        StableDiffusion3ClipDecoder,
        TextToVideoDecoder,
        LatteDecoder,
        WanDecoder,
    )
}


def register_decoder(decoder: type[Decoder]) -> type[Decoder]:
    """Adds a decoder of one's own; may stand above its class as a decorator.

    Raises:
        ValueError: its kind is taken by another class.
    """
    taken = DECODERS.setdefault(decoder.kind, decoder)
    if taken is not decoder:
        raise ValueError(
            f"The decoder kind '{decoder.kind}' of {decoder.__module__}.{decoder.__name__} is taken by "
            f"{taken.__module__}.{taken.__name__}. Choose another kind."
        )
    return decoder


def load_decoder(
    kind: str,
    source: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """A decoder of `kind` (see `DECODERS`) from a local folder or a Hub repository. Weights load on first use.

    Raises:
        OSError: a file of the decoder is missing or unreadable.
        ValueError: unknown kind, or the source holds another one.
    """
    return _decoder_class(kind)(source, revision=revision, device=device, dtype=dtype)


def conditioning_spec(kind: str, source: str, revision: str | None = None) -> ConditioningSpec:
    """The named tensors that a decoder takes, read from configuration files alone.

    `text_encoder/config.json` is enough for AudioLDM; others need a few more (see each decoder's `read_conditioning_spec`).
    """
    return _decoder_class(kind).read_conditioning_spec(str(source), revision)


def _decoder_class(kind: str) -> type[Decoder]:
    if kind not in DECODERS:
        raise ValueError(
            f"Unknown decoder kind '{kind}'. Known kinds: {', '.join(DECODERS)}. A program that brings another calls "
            "nextgpt.register_decoder first."
        )
    return DECODERS[kind]
