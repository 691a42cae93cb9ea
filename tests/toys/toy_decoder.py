"""A decoder of two tensors and a constant, brought along by the tests: proof that one file adds a decoder.

It draws one colour: `shade` says how light it is, `tint` which one, and `mask` which rows of `shade` count.
"""

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image

from nextgpt.decoders import Conditioning, ConditioningSpec, Decoder, Size, TensorSpec, register_decoder
from nextgpt.decoders.contract import multiples
from nextgpt.decoders.sources import read_config

ROWS, WIDTH = 3, 4


class ToyPipeline:
    """What a diffusers pipeline is to the base class of decoders."""

    def __init__(self):
        self.scheduler = DDIMScheduler()
        self.components = {}

    def to(self, device):
        return self

    def set_progress_bar_config(self, **options):
        pass


@register_decoder
class ToyDecoder(Decoder):
    """Conditioning: `shade`, 3 × 4, `tint`, 3, and the constant `mask`, 3."""

    kind = "toy"
    modality = "image"
    pipeline_class = "ToyPipeline"
    text_encoder_files = ("words/*",)
    autoencoder_files = ("*.json",)
    defaults = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 8, "width": 8}

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        rows = read_config(source, "words", revision)["rows"]
        return {"shade": TensorSpec((rows, WIDTH)), "tint": TensorSpec((3,)), "mask": TensorSpec((rows,), constant=1.0)}

    def _read_sizes(self) -> dict[str, Size]:
        return {"height": multiples(8, most=64), "width": multiples(8, most=64)}

    def _read_weights(self) -> ToyPipeline:
        return ToyPipeline()

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        counts = torch.tensor([[caption.count(letter) for letter in "reg"] for caption in captions], dtype=torch.float32)
        shades = torch.tensor([float(len(caption)) for caption in captions])
        rows = self.conditioning_spec["shade"].queries
        return {"shade": (shades / 20).view(-1, 1, 1).expand(-1, rows, WIDTH).clone(), "tint": counts / 4}

    def _run(self, pipeline, after_step, options: dict, arguments: dict) -> list[Image.Image]:
        pipeline.scheduler.set_timesteps(options["num_inference_steps"])
        shades = (arguments["shade"].mean(-1) * arguments["mask"]).mean(-1, keepdim=True)  # [N, 1]
        colours = ((shades + arguments["tint"]).sigmoid() * 255).to(torch.uint8).tolist()
        for step in range(options["num_inference_steps"]):
            after_step(step, arguments["shade"])
        return [Image.new("RGB", (options["width"], options["height"]), tuple(colour)) for colour in colours]

    def _encode_media(self, pipeline, media, options: dict) -> torch.Tensor:
        return torch.tensor([image.convert("RGB").getpixel((0, 0)) for image in media]).view(-1, 3, 1, 1) / 255

    def _denoise(self, pipeline, noisy, timesteps, conditioning: Conditioning) -> torch.Tensor:
        shades = (conditioning["shade"].mean(-1) * conditioning["mask"]).mean(-1, keepdim=True)
        return noisy * 0.1 + (shades + conditioning["tint"])[..., None, None]


def save_toy_decoder(folder: str | Path) -> Path:
    """The toy's folder, laid out as diffusers lays out a pipeline's."""
    files = {
        "model_index.json": {"_class_name": "ToyPipeline"},
        "words/config.json": {"rows": ROWS},
        "words/model.safetensors": {},  # a frozen part is known by its weights
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000},
    }
    for name, content in files.items():
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return Path(folder)
