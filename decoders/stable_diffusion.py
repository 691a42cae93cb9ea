"""Pictures by Stable Diffusion 1.x and 2.x, and by Stable Diffusion XL."""

from collections.abc import Callable

import torch
from PIL import Image

from nextgpt.decoders.contract import Conditioning, ConditioningSpec, TensorSpec
from nextgpt.decoders.media import decode_latents
from nextgpt.decoders.pictures import PictureDecoder
from nextgpt.decoders.sources import read_config, read_text_length, required_size


class StableDiffusionDecoder(PictureDecoder):
    """Conditioning: `prompt_embeds`, the CLIP text encoder's last hidden state, 77 × 768 (1.x) or 77 × 1024 (2.x)."""

    kind = "stable-diffusion"
    pipeline_class = "StableDiffusionPipeline"
    load_options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    defaults = {"num_inference_steps": 50, "guidance_scale": 7.5, "height": None, "width": None}


class StableDiffusionXLDecoder(PictureDecoder):
    """Conditioning: `prompt_embeds`, the last hidden states but one of two CLIP text encoders side by side, 77 × 2048, and
    `pooled_prompt_embeds`, the second one's text embedding, 1280.

    Guidance is against what the folder's configuration says: zeros, or the empty prompt.
    """

    kind = "stable-diffusion-xl"
    pipeline_class = "StableDiffusionXLPipeline"
    batch_tensors = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
    text_encoder_files = ("text_encoder/*", "tokenizer/*", "text_encoder_2/*", "tokenizer_2/*")
    load_options = {"image_encoder": None, "feature_extractor": None}
    defaults = {"num_inference_steps": 50, "guidance_scale": 5.0, "height": None, "width": None}

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """Both text encoders' and both tokenizers' configuration files."""
        first, second = (read_config(source, name, revision) for name in ("text_encoder", "text_encoder_2"))
        length = read_text_length(source, first, revision)
        read_text_length(source, second, revision, "tokenizer_2")
        width = sum(required_size(config, "hidden_size", source) for config in (first, second))
        pooled = required_size(second, "projection_dim", source)
        return {"prompt_embeds": TensorSpec((length, width)), "pooled_prompt_embeds": TensorSpec((pooled,))}

    def _read_weights(self):
        pipeline = super()._read_weights()
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.to(torch.float32)  # it overflows in half precision
        return pipeline

    def _run(
        self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict
    ) -> list[Image.Image]:
        # The pipeline would change the autoencoder's precision back and forth, under the feet of other threads.
        latents = super()._run(pipeline, after_step, options | {"output_type": "latent"}, arguments)
        return pipeline.image_processor.postprocess(decode_latents(pipeline.vae, latents), output_type="pil")

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipeline.encode_prompt(captions, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _encode_empty(self, pipeline) -> Conditioning:
        _, embeds, _, pooled = pipeline.encode_prompt("", device=self.device, do_classifier_free_guidance=True)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        embeds, pooled = conditioning["prompt_embeds"], conditioning["pooled_prompt_embeds"]
        size = tuple(side * pipeline.vae_scale_factor for side in noisy.shape[-2:])  # as generated: whole and uncropped
        times = pipeline._get_add_time_ids(size, (0, 0), size, noisy.dtype, text_encoder_projection_dim=pooled.shape[-1])
        added = {"text_embeds": pooled, "time_ids": times.to(noisy.device).expand(len(noisy), -1)}
        return pipeline.unet(noisy, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
