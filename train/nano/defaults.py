"""How long each part of the nano model is trained and in which batches: the makers and `make` read it here."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path("runs/nano")


class Default(NamedTuple):
    """What a maker does where it is not told: minutes of training on two cores, and the batch on a GPU."""

    minutes: float
    batch: int


# By the part's folder under the root.
DEFAULTS = {
    "picture_classifier": Default(20, 512),
    "sound_classifier": Default(15, 512),
    "clip_classifier": Default(12, 256),
    "autoencoder": Default(12, 64),
    "sound_autoencoder": Default(12, 64),
    "text_encoder": Default(8, 2048),
    "sound_text_encoder": Default(4, 2048),
    "clip_text_encoder": Default(4, 2048),
    "image_decoder": Default(45, 2048),
    "image_decoder/vae": Default(10, 64),
    "sound_decoder": Default(25, 512),
    "sound_decoder/vae": Default(8, 64),
    "clip_decoder": Default(45, 512),
    "encoder": Default(90, 1024),
    "audio_encoder": Default(40, 512),
    "language_model": Default(100, 32768),
}
