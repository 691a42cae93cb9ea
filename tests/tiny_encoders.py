"""Tiny random encoders for the tests of every room."""

import json
from pathlib import Path

import torch

from nextgpt.encoders import ImageBind, ImageBindConfig
from nextgpt.encoders.base import freeze

TINY_OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
TINY_PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}


def tiny_imagebind_config(**changes) -> ImageBindConfig:
    """16 x 16 pictures, videos of 2 x 3 views, two one-second sound clips, 16-d embeddings."""
    sizes = {
        "towers": ["vision", "audio", "text"],
        "out_embed_dim": 16,
        "image_size": 16,
        "kernel_size": [2, 8, 8],
        "video_clips": 2,
        "video_clip_seconds": 1,
        "audio_clips": 2,
        "audio_clip_seconds": 1,
        "audio_num_mel_bins": 16,
        "audio_target_len": 96,
        "text_context_length": 20,
    }
    for tower in ("vision", "audio", "text", "depth", "thermal", "imu"):
        sizes |= {f"{tower}_embed_dim": 16, f"{tower}_num_blocks": 1, f"{tower}_num_heads": 2}
    return ImageBindConfig(**(sizes | changes))


def tiny_imagebind(seed: int = 0, **changes) -> ImageBind:
    torch.manual_seed(seed)
    return freeze(ImageBind(tiny_imagebind_config(**changes)))


def tiny_open_clip_folder(folder: Path, preprocess: dict = TINY_PREPROCESS) -> Path:
    """A random open_clip model on disk, as open_clip itself writes one: configuration and safetensors."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": TINY_OPEN_CLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_OPEN_CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
