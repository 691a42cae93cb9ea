"""The decoder: it draws a straight line from two tensors, `level`, where it begins, and `slope`, where it leads."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from nextgpt.decoders import Conditioning, ConditioningSpec, Decoder, TensorSpec
from toys.curve import Curve
from toys.toy_decoder import ToyPipeline

ROWS, WIDTH = 2, 4


class CurveDecoder(Decoder):
    """Conditioning: `level`, 2 × 4, and `slope`, 3."""

    kind = "toy-curve"
    modality = "curve"
    pipeline_class = "ToyPipeline"
    text_encoder_files = autoencoder_files = ("*.json",)
    defaults = {"num_inference_steps": 2, "guidance_scale": 1.0, "points": 8}

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        return {"level": TensorSpec((ROWS, WIDTH)), "slope": TensorSpec((3,))}

    def _read_weights(self) -> ToyPipeline:
        return ToyPipeline()

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        levels = torch.tensor([1.0 if "high" in caption else -1.0 for caption in captions])
        slopes = torch.tensor([1.0 if "rising" in caption else -1.0 for caption in captions])
        return {"level": levels.view(-1, 1, 1).expand(-1, ROWS, WIDTH).clone(), "slope": slopes[:, None].repeat(1, 3)}

    def _run(self, pipeline, after_step, options: dict, arguments: dict) -> list[Curve]:
        pipeline.scheduler.set_timesteps(options["num_inference_steps"])
        for step in range(options["num_inference_steps"]):
            after_step(step, arguments["level"])
        levels, slopes = arguments["level"].mean((1, 2)).tolist(), arguments["slope"].mean(1).tolist()
        places = np.linspace(0, 1, options["points"], dtype=np.float32)
        return [Curve(level + slope * places, 0.1) for level, slope in zip(levels, slopes, strict=True)]


def save_curve_decoder(folder: Path) -> Path:
    """The decoder's folder, as diffusers lays out a pipeline's, with no weights in it."""
    files = {
        "model_index.json": {"_class_name": "ToyPipeline"},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"},
    }
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    save_file({}, folder / "scheduler" / "model.safetensors")  # a frozen part is known by its weights
    return folder
