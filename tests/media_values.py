"""Media and conditioning in the tests of decoders: their numbers, and whether two are alike."""

import numpy as np
import torch
from PIL import Image

from nextgpt.decoders import Audio, Conditioning, Decoder, Video

CAPTIONS = ["a large banana, 3d style, blue background", "rain", "a violin"]


def values(item) -> np.ndarray:
    """A media item's numbers, in [0, 1] for pictures and clips."""
    match item:
        case Audio():
            return item.array
        case Video():
            return item.frames / 255
        case Image.Image():
            return np.asarray(item) / 255


def assert_same(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        # One step of an 8-bit colour; sounds of amplitude 1 differ by the rounding of float32 (2e-5 was seen).
        np.testing.assert_allclose(values(a), values(b), rtol=0, atol=1e-4 if isinstance(a, Audio) else 1.01 / 255)


def assert_different(a, b) -> None:
    assert np.abs(values(a) - values(b)).max() > 5e-3


def random_conditioning(decoder: Decoder, count: int = 1, seed: int = 0) -> Conditioning:
    """What an untrained projection might make."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *spec.shape, generator=generator) for name, spec in decoder.conditioning_spec.items()}


def rows(conditioning: Conditioning, which: list[int]) -> Conditioning:
    """Some items of a batch."""
    return {name: tensor[which] for name, tensor in conditioning.items()}


def noise_picture(sigma: float, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Grey noise about the middle, always the same; Pillow's own is another one in each process."""
    values = np.random.default_rng(0).normal(128, sigma, size[::-1])
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
