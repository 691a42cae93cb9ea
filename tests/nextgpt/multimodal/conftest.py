"""A tiny saved model that draws, plays and films, which tests read and do not change."""

from pathlib import Path

import pytest
import torch

from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("any to any")
    parts = {
        "image": ("stable-diffusion", save_tiny_stable_diffusion(folder / "image")),
        "audio": ("audioldm", save_tiny_audioldm(folder / "audio")),
        "video": ("text-to-video", save_tiny_text_to_video(folder / "video")),
    }
    decoders = {modality: {"kind": kind, "source": str(path)} for modality, (kind, path) in parts.items()}
    model, processor = tiny_model(folder, decoders=decoders)
    torch.manual_seed(5)
    with torch.no_grad():
        model.signal_rows.output.normal_(std=0.04)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"
