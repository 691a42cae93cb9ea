"""Frozen diffusion decoders: conditioning in, media out; captions in, training targets out.

Knows diffusers. Does not know the assistant, its language model or its signal tokens. A new decoder is one small file
with a `Decoder` subclass, and one line in `DECODERS`.
"""

import torch

from nextgpt.decoders.audioldm import AudioLDMDecoder
from nextgpt.decoders.base import Decoder, GenerationCancelled
from nextgpt.decoders.media import Audio, Video
from nextgpt.decoders.stable_diffusion import StableDiffusionDecoder
from nextgpt.decoders.text_to_video import TextToVideoDecoder

__all__ = ["DECODERS", "Audio", "Decoder", "GenerationCancelled", "Video", "conditioning_shape", "load_decoder"]

DECODERS: dict[str, type[Decoder]] = {
    decoder.kind: decoder
    for decoder in (
        StableDiffusionDecoder,
        AudioLDMDecoder,
        TextToVideoDecoder,
    )
}


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


def conditioning_shape(kind: str, source: str, revision: str | None = None) -> tuple[int, int]:
    """(queries, width) of the conditioning that the decoder takes, read from configuration files alone.

    `text_encoder/config.json` is enough for AudioLDM; the others also need `tokenizer/tokenizer_config.json`.
    """
    return _decoder_class(kind).read_conditioning_shape(str(source), revision)


def _decoder_class(kind: str) -> type[Decoder]:
    if kind not in DECODERS:
        raise ValueError(f"Unknown decoder kind '{kind}'. Known kinds: {', '.join(DECODERS)}.")
    return DECODERS[kind]
