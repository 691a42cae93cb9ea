"""Configuration of ImageBind: tower sizes and preprocessing."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

TOWERS = ("vision", "text", "audio", "depth", "thermal", "imu")


@strict
class ImageBindConfig(PreTrainedConfig):
    """An ImageBind of any size; the defaults are the published `imagebind_huge` and its preprocessing.

    Field names and defaults follow the reference implementation (github.com/facebookresearch/ImageBind,
    `imagebind/models/imagebind_model.py` and `imagebind/data.py`); `towers`, the input sizes that it writes as
    literals and the sampling of clips are fields here.

    - `towers`: the towers that exist; a tower that is left out has no weights. The vision tower serves images and
      videos.
    - `{tower}_embed_dim`, `{tower}_num_blocks`, `{tower}_num_heads`: width, depth and heads of a tower.
    - `kernel_size`: frames, height and width of a vision patch. An image is repeated to `video_frames` frames.
    - `image_mean`, `image_std`: per channel, for values in 0..1; the defaults are OpenAI CLIP's.
    - `video_clips`, `video_clip_seconds`, `video_crops`: a video gives `video_clips * video_crops` views of
      `video_frames` frames each; `video_crops` is 1 (centre) or 3 (start, centre, end of the longer side).
    - `audio_clips`, `audio_clip_seconds`: a sound gives `audio_clips` spectrograms of `audio_num_mel_bins` x
      `audio_target_len` (10 ms a frame) at `audio_sampling_rate` Hz, normalised by `audio_mean` and `audio_std`. Each frame
      looks at `audio_window_ms`: the reference's 25 tell no harmonics of low notes apart.
    - `audio_logit_scale`: length of a sound's embedding; the length of a picture's is always 1.
    - `text_vocab_size`: 49408 is what CLIP's byte-pair tokenizer needs.
    """

    model_type = "imagebind"

    towers: list[str] | tuple[str, ...] = TOWERS
    out_embed_dim: int = 1024

    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    kernel_size: list[int] | tuple[int, ...] = (2, 14, 14)
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    video_frames: int = 2
    video_clips: int = 5
    video_clip_seconds: int | float = 2
    video_crops: int = 3

    text_vocab_size: int = 49408
    text_context_length: int = 77
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16

    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    audio_sampling_rate: int = 16000
    audio_clips: int = 3
    audio_clip_seconds: int | float = 2
    audio_mean: float = -4.268
    audio_std: float = 9.138
    audio_window_ms: int = 25
    audio_logit_scale: float = 20.0
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12

    depth_kernel_size: int = 16
    depth_embed_dim: int = 384
    depth_num_blocks: int = 12
    depth_num_heads: int = 8

    thermal_kernel_size: int = 16
    thermal_embed_dim: int = 768
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12

    imu_kernel_size: int = 8
    imu_length: int = 2000
    imu_embed_dim: int = 512
    imu_num_blocks: int = 6
    imu_num_heads: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("towers", "image_mean", "image_std", "kernel_size"):  # JSON gives lists
            setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_towers(self) -> None:
        """Check that every tower is known, whole heads fit its width, and patches fit the input."""
        if not self.towers or set(self.towers) - set(TOWERS):
            raise ValueError(f"towers is {self.towers}, expected some of {TOWERS}.")
        for tower in self.towers:
            width, heads = getattr(self, f"{tower}_embed_dim"), getattr(self, f"{tower}_num_heads")
            if width % heads:
                raise ValueError(f"{tower}_embed_dim is {width}, expected a multiple of {tower}_num_heads ({heads}).")
        frames, height, width = self.kernel_size
        if self.video_frames % frames or self.image_size % height or self.image_size % width:
            raise ValueError(
                f"kernel_size {self.kernel_size} does not divide video_frames x image_size x image_size "
                f"({self.video_frames}, {self.image_size}, {self.image_size})."
            )
        if self.video_crops not in (1, 3):
            raise ValueError(f"video_crops is {self.video_crops}, expected 1 or 3.")

    @property
    def embed_dim(self) -> int:
        """Width of the one embedding that every item gets."""
        return self.out_embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded: the vision tower serves `image` and `video`, any other tower its own name."""
        return tuple(m for t in self.towers for m in (("image", "video") if t == "vision" else (t,)))


def imagebind_huge_config() -> ImageBindConfig:
    """The configuration of the published `imagebind_huge.pth`: six towers, 1024-d embeddings, 1.2 B parameters."""
    return ImageBindConfig()
