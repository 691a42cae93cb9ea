"""Pictures by Stable Diffusion 3, and clips as strips of frames."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from nextgpt.decoders.contract import Conditioning, ConditioningSpec, Preview, Size, TensorSpec, at_step_end, multiples
from nextgpt.decoders.media import Video, as_videos, check_equal_lengths, decode_latents, scale_factor
from nextgpt.decoders.pictures import PictureDecoder, encode_images
from nextgpt.decoders.sources import exceed, read_config, read_json, read_text_length, required_size

T5_LENGTH = 256  # the pipeline's own default; a folder without T5 has as many rows of zeros in its place
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class StableDiffusion3Decoder(PictureDecoder):
    """Conditioning: `prompt_embeds` and `pooled_prompt_embeds`.

    A published folder has two CLIP text encoders and may have T5: `encode` gives what the pipeline's `encode_prompt` gives,
    (77 + 256) × 4096 and 2048. A folder with one CLIP text encoder and nulls for the other two is read too, which the
    pipeline itself cannot do: `prompt_embeds` is its last hidden state, `pooled_prompt_embeds` its text embedding
    (its pooled output, where it has no projection), the first padded with zeros to the width that the transformer takes.
    Where that is the width of the text embedding and not of the states, the text embedding is all of it: `prompt_embeds`
    is one row, the same vector as `pooled_prompt_embeds`.
    """

    kind = "stable-diffusion-3"
    pipeline_class = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    batch_tensors = ("latents", "prompt_embeds", "pooled_prompt_embeds")
    text_encoder_files = tuple(f"{name}{number}/*" for number in ("", "_2", "_3") for name in ("text_encoder", "tokenizer"))
    autoencoder_files = ("*.json", "vae/*", "transformer/config.json")
    load_options = {"image_encoder": None, "feature_extractor": None}
    defaults = {"num_inference_steps": 28, "guidance_scale": 7.0, "height": None, "width": None}

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """`model_index.json` and the configuration files of the transformer, the CLIP text encoders and their tokenizers.

        Raises:
            ValueError: the text encoders that are there do not make what the transformer takes.
        """
        index, transformer = read_json(source, "model_index.json", revision), read_config(source, "transformer", revision)
        there = [name for name in TEXT_ENCODERS if index.get(name, [None])[-1] is not None]
        if there not in (["text_encoder"], ["text_encoder", "text_encoder_2"], list(TEXT_ENCODERS)):
            raise ValueError(
                f"{source}: its text encoders are {', '.join(there) or 'none'}; expected text_encoder and text_encoder_2, "
                "with or without text_encoder_3, or text_encoder alone."
            )
        clips = [read_config(source, name, revision) for name in there if name != "text_encoder_3"]
        alone = len(there) == 1
        width = sum(required_size(config, "hidden_size", source) for config in clips)
        pooled = sum(required_size(config, _pooled_key(index, alone), source) for config in clips)
        length = read_text_length(source, clips[0], revision) + (0 if alone else T5_LENGTH)
        if alone and transformer.get("joint_attention_dim") == pooled != width:
            width, length = pooled, 1
        takes = {key: required_size(transformer, key, source) for key in ("joint_attention_dim", "pooled_projection_dim")}
        if width > takes["joint_attention_dim"] or pooled != takes["pooled_projection_dim"]:
            raise ValueError(
                f"{source}: its text encoders give states of {width} and a pooled embedding of {pooled}, its transformer "
                f"takes {takes['joint_attention_dim']} and {takes['pooled_projection_dim']}. They belong to another model."
            )
        shapes = {"prompt_embeds": (length, takes["joint_attention_dim"]), "pooled_prompt_embeds": (pooled,)}
        return {name: TensorSpec(shape) for name, shape in shapes.items()}

    def _side(self, factor: int, config: dict) -> tuple[int, int]:
        step = factor * config["patch_size"]
        return step, config["pos_embed_max_size"] * step

    def _read_weights(self):
        pipeline = super()._read_weights()
        if pipeline.vae.config.shift_factor is None:  # an autoencoder of older models: the pipeline wants a number
            pipeline.vae.register_to_config(shift_factor=0.0)
        return pipeline

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        if pipeline.text_encoder_2 is None:
            return self._encode_with_one(pipeline, captions)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            captions,
            captions,
            captions,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_LENGTH,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _encode_with_one(self, pipeline, captions: list[str]) -> Conditioning:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = pipeline.tokenizer(captions, max_length=pipeline.tokenizer.model_max_length, **options).input_ids
        output = pipeline.text_encoder(ids.to(self.device))
        spec, states = self.conditioning_spec["prompt_embeds"], output.last_hidden_state
        pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        if states.shape[1:] != spec.shape and spec.shape == (1, pooled.shape[-1]):
            states = pooled[:, None]
        return {"prompt_embeds": F.pad(states, (0, spec.width - states.shape[-1])), "pooled_prompt_embeds": pooled}

    def _cuts(self, pipeline, captions: list[str]) -> bool:
        alone = pipeline.text_encoder_2 is None
        return alone and exceed(pipeline.tokenizer, captions, pipeline.tokenizer.model_max_length)

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return pipeline.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
        ).sample


class StableDiffusion3ClipDecoder(StableDiffusion3Decoder):
    """Clips as strips, their frames one below the other. Conditioning: as of Stable Diffusion 3.

    The autoencoder sees each frame alone, the transformer sees the strip, which may have as many patches downwards as the
    transformer knows places. A frame is one patch where nothing else is said.
    """

    kind = "stable-diffusion-3-clips"
    modality = "video"
    defaults = {
        "num_inference_steps": 28,
        "guidance_scale": 7.0,
        "height": None,
        "width": None,
        "num_frames": None,
        "fps": 8,
    }

    @property
    def _sides(self) -> tuple[int, int]:
        """What a strip's sides must be multiples of, and at most, in pixels."""
        return self._side(scale_factor(self._config("vae")), self._config("transformer"))

    def _read_sizes(self) -> dict[str, Size]:
        step, most = self._sides
        frames = most // (self.generation_defaults["height"] or step)
        sides = multiples(step, step, most)
        return {"height": sides, "width": sides, "num_frames": Size(1, 1, frames, frames)}

    def _strip(self, options: dict) -> dict[str, int]:
        """Takes a clip's size out of the options of a call: height, width, number of frames.

        Raises:
            ValueError: so many frames of that height do not fit.
        """
        names = ("height", "width", "num_frames")
        size = {name: int(options.pop(name) or self.sizes[name].default) for name in names}
        _, most = self._sides
        if size["height"] * size["num_frames"] > most:
            raise ValueError(
                f"{size['num_frames']} frames of height {size['height']}, one below the other, are higher than the {most} "
                "pixels that the weights know: take fewer or smaller ones."
            )
        return size

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Video]:
        fps, size = options.pop("fps"), self._strip(options)
        latents = pipeline(
            **arguments,
            **options,
            height=size["height"] * size["num_frames"],
            width=size["width"],
            output_type="latent",
            **at_step_end(after_step, pipeline),
        ).images
        frames = _as_frames(latents, size["num_frames"])
        pixels = (decode_latents(pipeline.vae, frames).float() / 2 + 0.5).clamp(0, 1)
        return as_videos(pixels.unflatten(0, (-1, size["num_frames"])).movedim(2, -1).cpu().numpy(), fps)

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview | None:
        return None

    def _encode_media(self, pipeline, media: Sequence[Video], options: dict) -> torch.Tensor:
        check_equal_lengths(media)
        size = self._strip(options | {"num_frames": len(media[0].frames)})
        images = [Image.fromarray(frame) for video in media for frame in video.frames]
        latents = encode_images(pipeline, images, size["height"], size["width"])
        return as_strips(latents, size["num_frames"])


def as_strips(frames: torch.Tensor, count: int) -> torch.Tensor:
    """Latents of frames `[N * count, C, h, w]` → strips of so many, one below the other, `[N, C, count * h, w]`."""
    return frames.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)


def _as_frames(strips: torch.Tensor, count: int) -> torch.Tensor:
    """The inverse of `as_strips`."""
    return strips.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)


def _pooled_key(index: dict, alone: bool) -> str:
    """What the pooled embedding's width goes by: a lone text encoder may have no projection."""
    projects = not alone or index["text_encoder"][-1].endswith("WithProjection")
    return "projection_dim" if projects else "hidden_size"
