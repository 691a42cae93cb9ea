"""Pictures by Stable Diffusion 1.x and 2.x."""

from nextgpt.decoders.pictures import PictureDecoder


class StableDiffusionDecoder(PictureDecoder):
    """Conditioning: `prompt_embeds`, the CLIP text encoder's last hidden state, 77 × 768 (1.x) or 77 × 1024 (2.x)."""

    kind = "stable-diffusion"
    pipeline_class = "StableDiffusionPipeline"
    load_options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    defaults = {"num_inference_steps": 50, "guidance_scale": 7.5, "height": None, "width": None}
