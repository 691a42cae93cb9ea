"""From pictures, waveforms, frames and texts to ImageBind's input tensors.

The numbers come from the encoder's configuration. The steps are those of ImageBind's `data.py`
(github.com/facebookresearch/ImageBind) and of the pytorchvideo samplers that it calls.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextgpt.encoders.base import EncoderPreprocessor
from nextgpt.encoders.imagebind.configuration import ImageBindConfig

FRAME_SHIFT_MS = 10
# Rates are matched by a ratio of small numbers: exact for the common ones, and 44101 does not need a huge filter bank.
MAX_RATE_DENOMINATOR = 1000
MAX_ASPECT_RATIO = 64


class ImageBindPreprocessor(EncoderPreprocessor):
    """ImageBind's own preprocessing, at the sizes of a configuration."""

    def __init__(self, config: ImageBindConfig):
        super().__init__(config.modalities)
        self.config = config

    def image(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode -> [3, image_size, image_size]: short side resized, centre cropped."""
        size = self.config.image_size
        cropped = _resize_and_crop(image.convert("RGB"), size)
        pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 255
        return self._normalize_pixels(pixels)

    def audio(self, waveform: np.ndarray, sampling_rate: int) -> Tensor:
        """A sound of any length, rate and number of channels -> [clips, 1, mel bins, frames].

        Channels are averaged. Clips are spread evenly over the sound; one shorter than a clip is the same clip
        several times, padded.

        Args:
            waveform: float samples in -1..1, [samples] or [channels, samples].
            sampling_rate: in Hz.

        Raises:
            ValueError: for no samples, NaN among them, another shape or type, or a rate that is not positive.
        """
        config = self.config
        mono = _resample(_mono(waveform), sampling_rate, config.audio_sampling_rate)
        rate = config.audio_sampling_rate
        starts = _clip_starts(len(mono) / rate, config.audio_clip_seconds, config.audio_clips)
        clip_seconds = Fraction(config.audio_clip_seconds)
        clips = [mono[int(start * rate) : int((start + clip_seconds) * rate)] for start in starts]
        spectrograms = torch.stack([self._spectrogram(clip) for clip in clips])  # [clips, mel bins, frames]
        return ((spectrograms - config.audio_mean) / config.audio_std).unsqueeze(1)

    def video(self, frames: np.ndarray, fps: float) -> Tensor:
        """A video of any length, size and frame rate -> [clips * crops, 3, video_frames, image_size, image_size].

        Clips are spread evenly over the video, frames evenly over a clip; a clip's crops follow one another.

        Args:
            frames: uint8 [T, H, W, 3].
            fps: frames per second.

        Raises:
            ValueError: for no frames, another shape or type, or a frame rate that is not positive.
        """
        config = self.config
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [T, H, W, 3], T >= 1.")
        if not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"fps is {fps}, expected a positive number of frames per second.")
        views = []
        for indices in self.frame_indices(len(frames), float(fps)):
            clip = torch.from_numpy(frames[indices]).permute(3, 0, 1, 2).float() / 255  # [3, frames, H, W]
            clip = self._normalize_pixels(_scale_short_side(clip, config.image_size))
            views.extend(_crop(clip, config.image_size, position) for position in _crop_positions(config.video_crops))
        return torch.stack(views)

    def frame_indices(self, num_frames: int, fps: float) -> list[Tensor]:
        """For each clip of a video, which frames: those between its start and end, thinned out (or repeated) evenly."""
        config = self.config
        indices = []
        for start in _clip_starts(num_frames / fps, config.video_clip_seconds, config.video_clips):
            first = min(math.ceil(fps * start), num_frames - 1)
            end = min(math.ceil(fps * (start + Fraction(config.video_clip_seconds))), num_frames)
            last = max(end - 1, first)  # at less than one frame per clip, its span may hold none
            indices.append(first + torch.linspace(0, last - first, config.video_frames).long())
        return indices

    def text(self, texts: list[str]) -> Tensor:
        """Texts -> CLIP token ids [N, text_context_length], ended, zero-padded, cut where too long."""
        return _tokenizer()(texts, self.config.text_context_length)

    def _normalize_pixels(self, pixels: Tensor) -> Tensor:
        """[3, ...] in 0..1 -> the same, by the mean and deviation of each channel."""
        shape = (3,) + (1,) * (pixels.ndim - 1)
        mean, std = (torch.tensor(values).view(shape) for values in (self.config.image_mean, self.config.image_std))
        return (pixels - mean) / std

    def _spectrogram(self, clip: Tensor) -> Tensor:
        """[samples] -> log mel energies [mel bins, frames], cut or zero-padded; centres `clip` in place."""
        from torchaudio.compliance import kaldi

        config = self.config
        window = config.audio_sampling_rate * config.audio_window_ms // 1000
        clip -= clip.mean()  # in place, as the reference does: where clips overlap, the next one sees it
        clip = F.pad(clip, (0, max(0, window - len(clip))))
        energies = kaldi.fbank(
            clip[None],
            htk_compat=True,
            sample_frequency=config.audio_sampling_rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=config.audio_num_mel_bins,
            dither=0.0,
            frame_length=config.audio_window_ms,
            frame_shift=FRAME_SHIFT_MS,
        )  # [frames, mel bins]
        energies = energies[: config.audio_target_len].T
        return F.pad(energies, (0, config.audio_target_len - energies.shape[1]))


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, then the centre `size` x `size`, with torchvision's rounding."""
    width, height = image.size
    reach = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) > reach:  # a strip: its far ends would only be cut off, after filling the memory
        left, top = max(0, (width - reach) // 2), max(0, (height - reach) // 2)
        image = image.crop((left, top, min(width, left + reach), min(height, top + reach)))
        width, height = image.size
    short = min(width, height)
    resized = image.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    return resized.crop((left, top, left + size, top + size))


def _clip_starts(duration: float, clip_seconds: float, clips: int) -> list[Fraction]:
    """Starts, in seconds, of `clips` clips, evenly spaced; the last one ends one space before the end.

    This is `ConstantClipsPerVideoSampler` of the released pytorchvideo 0.1.5. Exact fractions of the
    (floating-point) duration, as there, because rounding decides which frame comes first.
    """
    space = Fraction(max(duration - Fraction(clip_seconds), 0)) / clips
    return [index * space for index in range(clips)]


def _mono(waveform: np.ndarray) -> Tensor:
    """[samples] or [channels, samples] -> [samples]."""
    if waveform.ndim not in (1, 2) or 0 in waveform.shape or not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"waveform is {waveform.dtype} {list(waveform.shape)}, expected floating-point [samples] or "
            "[channels, samples] with at least one sample."
        )
    samples = torch.from_numpy(np.array(waveform, dtype=np.float32))
    if not samples.isfinite().all():
        raise ValueError("waveform holds NaN or infinite samples, expected finite ones in -1..1.")
    return samples.mean(dim=0) if samples.ndim == 2 else samples


def _resample(samples: Tensor, sampling_rate: int, target_rate: int) -> Tensor:
    if sampling_rate <= 0:
        raise ValueError(f"sampling_rate is {sampling_rate}, expected a positive number of samples per second.")
    if sampling_rate == target_rate:
        return samples
    from torchaudio.functional import resample

    ratio = Fraction(target_rate) / Fraction(sampling_rate)
    ratio = max(ratio.limit_denominator(MAX_RATE_DENOMINATOR), Fraction(1, MAX_RATE_DENOMINATOR))
    return resample(samples, orig_freq=ratio.denominator, new_freq=ratio.numerator)


def _scale_short_side(clip: Tensor, size: int) -> Tensor:
    """[3, frames, H, W] -> the same with its shorter side at `size`, bilinear."""
    height, width = clip.shape[-2:]
    if width < height:
        target = (math.floor(height / width * size), size)
    else:
        target = (size, math.floor(width / height * size))
    return F.interpolate(clip, size=target, mode="bilinear", align_corners=False)


def _crop_positions(crops: int) -> tuple[float, ...]:
    return (0.5,) if crops == 1 else (0.0, 0.5, 1.0)


def _crop(clip: Tensor, size: int, position: float) -> Tensor:
    """[3, frames, H, W] -> [3, frames, size, size], at `position` (0 start, 1 end) of the longer side."""
    top, left = (math.ceil((side - size) * position) for side in clip.shape[-2:])
    return clip[..., top : top + size, left : left + size]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()
