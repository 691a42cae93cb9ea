"""Makes the diffusion decoders: small pipelines of diffusers that learn to draw, play and film the world from its captions.

`python -m nextgpt.train.nano.models.decoder image` (or `audio`, `video`) needs the autoencoder and the text encoder, which
stay as they are. It computes the latents of the training media and the conditioning of all captions once, trains the
denoiser on them and writes the pipeline. It goes on from its last checkpoint when started again.

- `image`: `StableDiffusion3Pipeline`, a transformer over few large patches, told by the caption's embedding.
- `audio`: the same on log-mel spectrograms, with a vocoder beside it (`nextgpt.decoders.spectrograms`).
- `video`: `LattePipeline`, a transformer over patches of each frame and over time, on the pictures' autoencoder.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderDC,
    DiffusionPipeline,
    LattePipeline,
    LatteTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nextgpt.decoders import Conditioning
from nextgpt.decoders.vocoder import GriffinLimVocoder, GriffinLimVocoderConfig
from nextgpt.train.nano.defaults import ROOT
from nextgpt.train.nano.models import loop, text_encoders
from nextgpt.train.nano.models.autoencoder import FACTOR, encode
from nextgpt.train.nano.models.autoencoder import load as load_autoencoder
from nextgpt.train.nano.models.captions import clip_numbers, picture_numbers
from nextgpt.train.nano.models.denoising import LEARNING_RATE, Cached, Denoising, new_scheduler, save, train
from nextgpt.train.nano.models.text_encoders import POOLED, WIDTH
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import FPS, FRAMES, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import SIDE, Renderer, World
from nextgpt.train.nano.world.sounds import SAMPLING_RATE, SECONDS, SoundWorld
from nextgpt.train.nano.world.spectrograms import BANDS, HOP, log_mels
from nextgpt.train.nano.world.spectrograms import FRAMES as MEL_FRAMES

FOLDERS = {"image": "image_decoder", "audio": "sound_decoder", "video": "clip_decoder"}
LATENT_SIDE = SIDE // FACTOR
MOST_OFTEN = 3.0
STEPS = 1  # it predicts the sample, and so narrow a network can only blur what a first step has found
VOCODER = GriffinLimVocoderConfig(sampling_rate=SAMPLING_RATE, model_in_dim=BANDS, upsample_rates=(HOP,), rounds=32)


class Media(NamedTuple):
    """What a denoiser learns from.

    Attributes:
        latents: of all media, `[media, C, ...]`.
        captions: the numbers of their captions `[media]`.
        choose: count → the numbers of as many media, at random.
        pixels: numbers of media → what the autoencoder takes of them.
    """

    latents: Tensor
    captions: Tensor
    choose: Callable[[int], Tensor]
    pixels: Callable[[Tensor], Tensor]


def _media(autoencoder: AutoencoderDC, pixels: Callable[[Tensor], Tensor], captions: Tensor) -> Media:
    """Each of them is as likely as any other."""
    every = torch.arange(len(captions), device=captions.device)
    latents = torch.cat([encode(autoencoder, pixels(part)).bfloat16() for part in every.split(64)])
    return Media(latents, captions, lambda count: torch.randint(len(captions), (count,), device=captions.device), pixels)


# -- pictures ---------------------------------------------------------------------------------------------------


def new_picture_denoiser(channels: int) -> SD3Transformer2DModel:
    """At random; 9 M parameters. One patch a picture."""
    return _new_sd3(channels, heads=8, patch=LATENT_SIDE, most=1)


def _new_sd3(channels: int, heads: int, patch: int, most: int) -> SD3Transformer2DModel:
    """One wide layer, told by the caption's embedding; `most` patches a side.

    What is drawn is told by the caption alone, so the network is memory: few large patches and width learn it ten times
    faster than many patches and depth.
    """
    return SD3Transformer2DModel(
        sample_size=patch * most,
        patch_size=patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=POOLED,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=most,
    )


def _call_sd3(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    states, pooled = conditioning["prompt_embeds"], conditioning["pooled_prompt_embeds"]
    return denoiser(noisy, states, pooled, timesteps).sample


def _pictures(args: Namespace, world: World, autoencoder: AutoencoderDC, device: torch.device) -> Media:
    renderer = Renderer(torch.from_numpy(world.art).to(device))
    rows = sampling.combinations(world, "train", args.concepts, device)

    def pixels(chosen: Tensor) -> Tensor:
        return renderer(rows[chosen]) * 2 - 1

    media = _media(autoencoder, pixels, picture_numbers(world, rows))
    every = torch.arange(len(rows), device=device)
    weights = faintness(torch.cat([pixels(part) for part in every.split(256)]))
    return media._replace(choose=lambda count: torch.multinomial(weights, count, replacement=True))


def faintness(pixels: Tensor) -> Tensor:
    """How often each picture is drawn, `[N]`, 1 to `MOST_OFTEN` times: the fainter on its background, the more often.

    A small thing, and one of its background's colour, adds little to a mean square, so that they would be learned last.

    Args:
        pixels: pictures `[N, 3, S, S]`; their first pixel is background.
    """
    contrast = (pixels - pixels[..., :1, :1]).square().mean((1, 2, 3)).sqrt().clamp(min=1e-6)
    return (contrast.median() / contrast).clamp(1, MOST_OFTEN)


# -- sounds -----------------------------------------------------------------------------------------------------


def new_sound_denoiser(channels: int) -> SD3Transformer2DModel:
    """At random; 5 M parameters. Two patches a sound, each 1.28 seconds of all bands."""
    return _new_sd3(channels, heads=5, patch=BANDS // FACTOR, most=MEL_FRAMES // BANDS)


def _sounds(args: Namespace, world: World, autoencoder: AutoencoderDC, device: torch.device) -> Media:
    sounds = SoundWorld(args.world)
    rows = sounds.rows("train", args.concepts)
    varied, waveforms = sounds.variations(args.concepts)
    mels = torch.cat([log_mels(sounds.heard(rows)), log_mels(waveforms)]).to(device)
    numbers, plain = torch.cat([rows, varied]).to(device), len(rows)

    def choose(count: int) -> Tensor:
        chosen = torch.randint(len(numbers), (count,), device=device)
        chosen[: count // 2] %= plain  # the others vary: with one sound for each caption it learns by heart
        return chosen

    return _media(autoencoder, mels.__getitem__, numbers)._replace(choose=choose)


# -- clips ------------------------------------------------------------------------------------------------------


def new_clip_denoiser(channels: int) -> LatteTransformer3DModel:
    """At random; 5 M parameters. One patch a frame."""
    return LatteTransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=2 * channels,  # as the pipeline wants it: the second half is left unused
        num_layers=1,
        cross_attention_dim=320,
        attention_bias=True,
        sample_size=LATENT_SIDE,
        patch_size=LATENT_SIDE,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=WIDTH,
        video_length=FRAMES,
    )


def _call_latte(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    predicted = denoiser(noisy, timesteps, encoder_hidden_states=conditioning["prompt_embeds"]).sample
    return predicted[:, : noisy.shape[1]]


def _clips(args: Namespace, world: World, autoencoder: AutoencoderDC, device: torch.device) -> Media:
    clips = ClipWorld(world)
    renderer = ClipRenderer(world, Renderer(torch.from_numpy(world.art).to(device)))
    rows = clips.rows("train", args.concepts).to(device)

    def pixels(chosen: Tensor) -> Tensor:
        return renderer(rows[chosen]).transpose(1, 2).flatten(0, 1) * 2 - 1  # [N * 8, 3, 64, 64]

    frames = _media(autoencoder, pixels, clip_numbers(clips, rows))
    return frames._replace(latents=frames.latents.unflatten(0, (-1, FRAMES)).transpose(1, 2))


# -- pipelines --------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How the decoder of one modality is made.

    Attributes:
        parts: the folders under the root that it stands on: its autoencoder and its text encoder.
        media: what it learns from.
        new: channels of the latents → the denoiser, at random.
        call: as `Denoising` has it.
        pipeline: what is saved; it calls the denoiser `transformer`.
        extra: further components.
        generation: the options that it generates with by default.
    """

    parts: tuple[str, str]
    media: Callable[[Namespace, World, AutoencoderDC, torch.device], Media]
    new: Callable[[int], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]
    pipeline: type[DiffusionPipeline]
    extra: dict[str, None]
    generation: dict[str, Any]


ALONE = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))  # one text encoder is all
SIZE = {"height": SIDE, "width": SIDE}
KINDS = {
    "image": Kind(
        parts=("autoencoder", "text_encoder"),
        media=_pictures,
        new=new_picture_denoiser,
        call=_call_sd3,
        pipeline=StableDiffusion3Pipeline,
        extra=ALONE,
        generation={"num_inference_steps": STEPS, "guidance_scale": 1.0, **SIZE, "fixed": [*SIZE]},
    ),
    "audio": Kind(
        parts=("sound_autoencoder", "sound_text_encoder"),
        media=_sounds,
        new=new_sound_denoiser,
        call=_call_sd3,
        pipeline=StableDiffusion3Pipeline,
        extra=ALONE,
        generation={"num_inference_steps": STEPS, "guidance_scale": 1.0, "duration": SECONDS},
    ),
    "video": Kind(
        parts=("autoencoder", "clip_text_encoder"),
        media=_clips,
        new=new_clip_denoiser,
        call=_call_latte,
        pipeline=LattePipeline,
        extra={},
        generation={
            "num_inference_steps": STEPS,
            "guidance_scale": 1.0,
            **SIZE,
            "num_frames": FRAMES,
            "fps": FPS,
            "fixed": [*SIZE, "num_frames"],
        },
    ),
}


def save_pipeline(
    modality: str,
    autoencoder: AutoencoderDC,
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    denoiser: nn.Module,
    out: Path,
) -> None:
    """Saves the parts together as the decoder of a modality."""
    kind = KINDS[modality]
    for refined in (out / "vae", out / "vae.work"):  # of the denoiser before this one
        shutil.rmtree(refined, ignore_errors=True)
    parts = {"vae": autoencoder, "text_encoder": text_encoder, "tokenizer": tokenizer, "transformer": denoiser}
    save(kind.pipeline(**parts, scheduler=new_scheduler(), **kind.extra), kind.generation, out)
    if modality == "audio":
        GriffinLimVocoder(VOCODER).save_pretrained(out / "vocoder")


def main() -> None:
    """Caches, trains and saves the pipeline."""
    parser = loop.arguments(__doc__.split("\n")[0], FOLDERS)
    parser.add_argument("--root", type=Path, default=ROOT, help="where the autoencoder and text encoder are")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    args = parser.parse_args()
    world, device = loop.start(args)
    kind = KINDS[args.modality]
    autoencoder, text_encoder = (args.root / part for part in kind.parts)
    vae = load_autoencoder(autoencoder, device)
    encoder = (
        text_encoders.KINDS[args.modality]
        .model.from_pretrained(text_encoder)
        .float()
        .to(device)
        .eval()
        .requires_grad_(False)
    )
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)  # the one that the encoder has learned with
    conditioning = text_encoders.encode_all(args.modality, encoder, tokenizer, world, device)
    media = kind.media(args, world, vae, device)

    network = Denoising(kind.new(media.latents.shape[1]), kind.call)
    denoiser, run = train(args, network, Cached(conditioning, media.latents, media.captions), media.choose, device)
    save_pipeline(args.modality, vae, encoder, tokenizer, denoiser, args.out)
    parameters = {"text_encoder": loop.parameter_count(encoder), "denoiser": loop.parameter_count(denoiser)}
    run.write_figures(args.out, parameters=parameters)


if __name__ == "__main__":
    main()
