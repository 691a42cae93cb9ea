"""Clips by Latte."""

import math
from collections.abc import Callable

import torch

from nextgpt.decoders.contract import Conditioning, ConditioningSpec, Size, TensorSpec, at_step_end, multiples
from nextgpt.decoders.media import Video, as_videos, scale_factor
from nextgpt.decoders.sources import exceed, read_t5_shape
from nextgpt.decoders.text_to_video import TextToVideoDecoder

TEXT_LENGTH = 120  # at most: the pipeline's own


class LatteDecoder(TextToVideoDecoder):
    """Conditioning: `prompt_embeds`, T5's last hidden state, zeros where the caption has ended, 120 × 4096.

    So it is what the pipeline makes of several captions at once; of a single one it leaves the zeros out. The transformer
    predicts twice as many channels as the latents have, of which the first half counts.
    """

    kind = "latte"
    pipeline_class = "LattePipeline"
    denoiser = "transformer"
    batch_tensors = ("latents", "prompt_embeds")
    autoencoder_files = ("*.json", "vae/*", "transformer/config.json")
    # As diffusers' pipeline has them; 8 frames per second as Latte was trained.
    defaults = {
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "height": 512,
        "width": 512,
        "num_frames": 16,
        "fps": 8,
    }

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """The configuration files of the text encoder and of its tokenizer."""
        return {"prompt_embeds": TensorSpec(read_t5_shape(source, revision, TEXT_LENGTH))}

    def _read_sizes(self) -> dict[str, Size]:
        transformer = self._config("transformer")
        step = math.lcm(8, scale_factor(self._config("vae")) * transformer["patch_size"])
        frames = Size.only(transformer["video_length"])  # each has its place in time
        return {"height": multiples(step), "width": multiples(step), "num_frames": frames}

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        states, mask = self._states(pipeline, captions)
        return {"prompt_embeds": states * mask[..., None].to(states.dtype)}

    def _encode_empty(self, pipeline) -> Conditioning:
        return {"prompt_embeds": self._states(pipeline, [""])[0]}  # here the pipeline puts no zeros

    def _states(self, pipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.conditioning_spec["prompt_embeds"].queries
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        read = pipeline.tokenizer([caption.lower().strip() for caption in captions], **options).to(self.device)
        states = pipeline.text_encoder(read.input_ids, attention_mask=read.attention_mask).last_hidden_state
        return states, read.attention_mask

    def _cuts(self, pipeline, captions: list[str]) -> bool:
        return exceed(pipeline.tokenizer, captions, self.conditioning_spec["prompt_embeds"].queries)

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states = conditioning["prompt_embeds"]
        return pipeline.transformer(noisy, timesteps, encoder_hidden_states=states).sample[:, : noisy.shape[1]]

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Video]:
        fps, options["video_length"] = options.pop("fps"), options.pop("num_frames")
        clips = pipeline(
            **arguments,
            **options,
            negative_prompt=None,  # the empty one comes as embeddings
            clean_caption=False,
            output_type="np",
            **at_step_end(after_step, pipeline),
        ).frames
        return as_videos(clips, fps)
