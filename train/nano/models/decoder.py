"""Makes the diffusion decoders: small pipelines of diffusers that learn to draw, play and film the world from its captions.

`python -m nextgpt.train.nano.models.decoder image` (or `audio`, `video`) needs the autoencoder and the text encoder, which
stay as they are. It computes the latents of the training media and the conditioning of all captions once, trains the
denoiser on them and writes the pipeline. It goes on from its last checkpoint when started again.

All three are `StableDiffusion3Pipeline`s, a transformer over few large patches, told by the caption's embedding: pictures
of one patch, log-mel spectrograms of two with a vocoder beside them, clips as strips of their frames, one patch each.

Of things whose name the world knows in some combinations only, the others have to be guessed. The more things a denoiser has
seen in all combinations, the better it guesses, so it also learns from what has no caption. That is *strangers*: instruments
and mixtures of them that the world does not know, what is never filmed, and what is filmed in other styles; and the world's
instruments, playing other patterns of notes than its figures. In the place of a caption they have codes of their own.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderDC, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from nextgpt.decoders import Conditioning
from nextgpt.decoders.stable_diffusion_3 import as_strips
from nextgpt.decoders.vocoder import GriffinLimVocoder, GriffinLimVocoderConfig
from nextgpt.train.nano.defaults import ROOT
from nextgpt.train.nano.models import loop, text_encoders
from nextgpt.train.nano.models.autoencoder import FACTOR, encode
from nextgpt.train.nano.models.autoencoder import load as load_autoencoder
from nextgpt.train.nano.models.captions import clip_numbers, picture_numbers
from nextgpt.train.nano.models.denoising import LEARNING_RATE, Cached, Denoising, new_scheduler, save, train
from nextgpt.train.nano.models.text_encoders import POOLED
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import FPS, FRAMES, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import SIDE, Renderer, World
from nextgpt.train.nano.world.player import FIGURES, PEAK, REGISTERS, SAMPLING_RATE, SECONDS
from nextgpt.train.nano.world.sounds import PATTERNS, SoundWorld
from nextgpt.train.nano.world.spectrograms import BANDS, HOP, log_mels
from nextgpt.train.nano.world.spectrograms import FRAMES as MEL_FRAMES
from nextgpt.train.nano.world.waveforms import in_parts

FOLDERS = {"image": "image_decoder", "audio": "sound_decoder", "video": "clip_decoder"}
LATENT_SIDE = SIDE // FACTOR
MOST_OFTEN = 3.0
STEPS = 1  # it predicts the sample, and so narrow a network can only blur what a first step has found
PHRASES = 8  # one in so many sounds has no figure
MIXTURES = 1  # for each instrument that the world does not know
VOCODER = GriffinLimVocoderConfig(sampling_rate=SAMPLING_RATE, model_in_dim=BANDS, upsample_rates=(HOP,), rounds=32)


class Others(NamedTuple):
    """Media that have no caption.

    Attributes:
        latents: `[media, C, h, w]`.
        alike: of each of them the captions that come near, `[media, captions]`, bool.
        codes: of each the numbers of what no caption says of it, `[media, codes]`; 0 is nothing.
        often: how often each is drawn, `[media]`.
    """

    latents: Tensor
    alike: Tensor
    codes: Tensor
    often: Tensor


class Media(NamedTuple):
    """What a denoiser learns from.

    Attributes:
        latents: of all media, `[media, C, h, w]`.
        captions: the numbers of their captions `[media]`.
        choose: count → the numbers of as many media, at random.
        pixels: numbers of media → what the autoencoder takes of them.
        others: computes what has no caption; only the training of a denoiser needs it.
    """

    latents: Tensor
    captions: Tensor
    choose: Callable[[int], Tensor]
    pixels: Callable[[Tensor], Tensor]
    others: Callable[[], Others] | None = None


def _media(autoencoder: AutoencoderDC, pixels: Callable[[Tensor], Tensor], captions: Tensor) -> Media:
    """Each of them is as likely as any other."""
    latents = _latents(autoencoder, pixels, len(captions), captions.device)
    return Media(latents, captions, lambda count: torch.randint(len(captions), (count,), device=captions.device), pixels)


def _latents(autoencoder: AutoencoderDC, pixels: Callable[[Tensor], Tensor], count: int, device: torch.device) -> Tensor:
    every = torch.arange(count, device=device)
    return torch.cat([encode(autoencoder, pixels(part)).bfloat16() for part in every.split(64)])


def with_others(conditioning: Conditioning, media: Media, others: Others) -> tuple[Conditioning, Media]:
    """Adds media without captions, and what stands for their captions to the conditioning: a half of what is chosen.

    That is the mean of the captions that come near, and a vector for each of their codes.
    """
    random = torch.randn(int(others.codes.max()), POOLED, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([torch.zeros(1, POOLED), random]).to(others.latents.device)[others.codes].sum(1)
    shares, groups = others.alike.float() / others.alike.sum(1, keepdim=True), others.alike.unique(dim=0)
    extended = {}
    for name, states in conditioning.items():
        known = states[:-1].flatten(1).float()
        spread = torch.cat([known[group] - known[group].mean(0) for group in groups]).std()
        said = (shares @ known + spread * codes).view(-1, *states.shape[1:])
        extended[name] = torch.cat([states[:-1], said.to(states), states[-1:]])
    count, first = len(media.latents), others.alike.shape[1]
    numbers = first + torch.arange(len(others.latents), device=media.captions.device)

    def choose(wanted: int) -> Tensor:
        strange = torch.multinomial(others.often, wanted // 2, replacement=True)
        return torch.cat([media.choose(wanted - wanted // 2), count + strange])

    latents, captions = torch.cat([media.latents, others.latents]), torch.cat([media.captions, numbers])
    return extended, media._replace(latents=latents, captions=captions, choose=choose)


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
    varied, waveforms = sounds.variations(args.concepts)  # most of them are phrases
    phrases = varied >= len(sounds.combinations)  # the others are of a caption that has its plain sound
    mels = torch.cat([log_mels(sounds.heard(rows)), in_parts(log_mels, waveforms[phrases.numpy()])]).to(device)
    numbers, plain = torch.cat([rows, varied[phrases]]).to(device), len(rows)
    media = _media(autoencoder, mels.__getitem__, numbers)

    def choose(count: int) -> Tensor:
        chosen = torch.randint(len(numbers), (count,), device=device)
        chosen[: count - count // PHRASES] %= plain
        return chosen

    return media._replace(choose=choose, others=lambda: _other_sounds(args, sounds, autoencoder, device))


def _other_sounds(args: Namespace, sounds: SoundWorld, autoencoder: AutoencoderDC, device: torch.device) -> Others:
    """Strangers in all figures and patterns, and the world's instruments in the patterns: either kind as often."""
    said = sounds.targets(torch.arange(len(sounds.captioned)), -1).to(device)  # instrument, register, figure
    in_register = [(said[:, 1] == r) & (said[:, 2] >= 0) for r in range(len(REGISTERS))]
    in_figure = [in_register[r] & (said[:, 2] == f) for r in range(len(REGISTERS)) for f in range(len(FIGURES))]
    in_pattern = [alike for alike in in_register for _ in range(PATTERNS)]
    pattern = torch.tensor([0] * len(in_figure) + [1 + p for _ in REGISTERS for p in range(PATTERNS)], device=device)
    strangers = sounds.strangers(args.concepts)
    strangers = torch.cat([strangers, mixtures(strangers, MIXTURES * len(strangers))])
    things = len(strangers)
    code = 1 + PATTERNS + torch.arange(things, device=device)
    known, practice = sounds.practice(args.concepts)
    known = known.to(device)
    latents = [
        _latents(autoencoder, lambda part, some=some: log_mels(some[part.cpu()]).to(device), len(some), device)
        for some in (strangers.flatten(0, 1), practice.flatten(0, 1))
    ]
    alike = torch.stack([*in_figure, *in_pattern]).repeat(things, 1)
    by_known = (said[None, :, 0] == known[:, None])[:, None] & torch.stack(in_pattern)
    codes = torch.stack([pattern.repeat(things), code.repeat_interleave(len(pattern))], 1)
    played = pattern[len(in_figure) :].repeat(len(known))
    return Others(
        torch.cat(latents),
        torch.cat([alike, by_known.flatten(0, 1)]),
        torch.cat([codes, torch.stack([played, torch.zeros_like(played)], 1)]),
        torch.cat([torch.full((len(some),), 1 / len(some), device=device) for some in latents]),
    )


def mixtures(instruments: Tensor, count: int) -> Tensor:
    """Sounds of two instruments together, in any proportion: `[instruments, combinations, samples]` → `[count, …]`."""
    drawn = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randperm(len(instruments), generator=drawn)[:2] for _ in range(count)])
    share = 0.3 + 0.4 * torch.rand(count, 1, 1, generator=drawn)
    mixed = share * instruments[pairs[:, 0]] + (1 - share) * instruments[pairs[:, 1]]
    return mixed * (PEAK / mixed.abs().amax(-1, keepdim=True).clamp(min=1e-4))


# -- clips ------------------------------------------------------------------------------------------------------


def new_clip_denoiser(channels: int) -> SD3Transformer2DModel:
    """At random; 5 M parameters. One patch a frame."""
    return _new_sd3(channels, heads=6, patch=LATENT_SIDE, most=FRAMES)


def _clips(args: Namespace, world: World, autoencoder: AutoencoderDC, device: torch.device) -> Media:
    clips = ClipWorld(world)
    renderer = ClipRenderer(world, Renderer(torch.from_numpy(world.art).to(device)))
    rows = clips.rows("train", args.concepts).to(device)
    extra = clips.extra_training_clips(args.concepts).to(device)

    def frames(rows: Tensor) -> Tensor:
        return renderer(rows).transpose(1, 2).flatten(0, 1) * 2 - 1  # [N * 8, 3, 64, 64]

    media = _media(autoencoder, lambda chosen: frames(rows[chosen]), clip_numbers(clips, rows))

    def others() -> Others:
        latents = _latents(autoencoder, lambda chosen: frames(extra[chosen]), len(extra), device)
        alike = extra[:, 1:2] == torch.arange(len(clips.names) * len(clips.motions), device=device) % len(clips.motions)
        things = extra[:, [0, 2]].unique(dim=0, return_inverse=True)[1]  # each in each style
        return Others(as_strips(latents, FRAMES), alike, 1 + things[:, None], torch.ones(len(extra), device=device))

    return media._replace(latents=as_strips(media.latents, FRAMES), others=others)


# -- pipelines --------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How the decoder of one modality is made.

    Attributes:
        parts: the folders under the root that it stands on: its autoencoder and its text encoder.
        media: what it learns from.
        new: channels of the latents → the denoiser, at random.
        generation: the options that it generates with by default.
    """

    parts: tuple[str, str]
    media: Callable[[Namespace, World, AutoencoderDC, torch.device], Media]
    new: Callable[[int], nn.Module]
    generation: dict[str, Any]


ALONE = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))  # one text encoder is all
SIZE = {"height": SIDE, "width": SIDE}
KINDS = {
    "image": Kind(("autoencoder", "text_encoder"), _pictures, new_picture_denoiser, {**SIZE, "fixed": [*SIZE]}),
    "audio": Kind(("sound_autoencoder", "sound_text_encoder"), _sounds, new_sound_denoiser, {"duration": SECONDS}),
    "video": Kind(
        ("autoencoder", "clip_text_encoder"),
        _clips,
        new_clip_denoiser,
        {**SIZE, "num_frames": FRAMES, "fps": FPS, "fixed": [*SIZE, "num_frames"]},
    ),
}


def call(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """What the denoiser predicts."""
    states, pooled = conditioning["prompt_embeds"], conditioning["pooled_prompt_embeds"]
    return denoiser(noisy, states, pooled, timesteps).sample


def save_pipeline(
    modality: str,
    autoencoder: AutoencoderDC,
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    denoiser: nn.Module,
    out: Path,
) -> None:
    """Saves the parts together as the decoder of a modality."""
    for refined in (out / "vae", out / "vae.work"):  # of the denoiser before this one
        shutil.rmtree(refined, ignore_errors=True)
    parts = {"vae": autoencoder, "text_encoder": text_encoder, "tokenizer": tokenizer, "transformer": denoiser}
    generation = {"num_inference_steps": STEPS, "guidance_scale": 1.0, **KINDS[modality].generation}
    save(StableDiffusion3Pipeline(**parts, scheduler=new_scheduler(), **ALONE), generation, out)
    if modality == "audio":
        GriffinLimVocoder(VOCODER).save_pretrained(out / "vocoder")


def main() -> None:
    """Caches, trains and saves the pipeline."""
    parser = loop.arguments(__doc__.split("\n")[0], FOLDERS, LEARNING_RATE)
    parser.add_argument("--root", type=Path, default=ROOT, help="where the autoencoder and text encoder are")
    args = parser.parse_args()
    world, device = loop.start(args)
    kind = KINDS[args.modality]
    autoencoder, text_encoder = (args.root / part for part in kind.parts)
    vae = load_autoencoder(autoencoder, device)
    encoder = CLIPTextModelWithProjection.from_pretrained(text_encoder).float().to(device).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)  # the one that the encoder has learned with
    conditioning = text_encoders.encode_all(args.modality, encoder, tokenizer, world, device)
    media = kind.media(args, world, vae, device)
    if media.others is not None:
        conditioning, media = with_others(conditioning, media, media.others())

    network = Denoising(kind.new(media.latents.shape[1]), call)
    denoiser, run = train(args, network, Cached(conditioning, media.latents, media.captions), media.choose, device)
    save_pipeline(args.modality, vae, encoder, tokenizer, denoiser, args.out)
    parameters = {"text_encoder": loop.parameter_count(encoder), "denoiser": loop.parameter_count(denoiser)}
    run.write_figures(args.out, parameters=parameters)


if __name__ == "__main__":
    main()
