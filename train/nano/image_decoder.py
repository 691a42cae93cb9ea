"""Makes the picture decoder: a small Stable Diffusion whose UNet learns to draw the world from its captions.

`python -m nextgpt.train.nano.image_decoder --minutes 45` needs the autoencoder and the text encoder, which stay as
they are. It caches the autoencoder's latents of the training pictures, trains the UNet on them by v-prediction and
writes a `StableDiffusionPipeline`. It goes on from its last checkpoint when started again. It knows nothing of the
assistant, save that the text states will later come, slightly wrong, from an output projection: so it trains with
noise on some of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from nextgpt.train.nano import loop
from nextgpt.train.nano.autoencoder import encode_all
from nextgpt.train.nano.captions import Captions
from nextgpt.train.nano.text_encoder import WIDTH
from nextgpt.train.nano.world import Renderer, World

LEARNING_RATE = 6e-4
# Above this signal-to-noise ratio the loss counts less, as in Hang et al. 2023, "Efficient Diffusion Training via
# Min-SNR Weighting Strategy". Below it, unlike there, it counts in full: in almost pure noise the words decide.
SNR_GAMMA = 5.0
EMPTY_SHARE = 0.1  # of the captions are empty, for classifier-free guidance
NOISY_SHARE = 0.3  # of the text states get noise
MOST_NOISE = 0.3  # in units of the text states' own deviation
EMA_STEPS = 300
GENERATION = {"num_inference_steps": 20, "guidance_scale": 3.0, "height": 64, "width": 64}
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",  # ends in pure noise, which the few, nearly independent latents need
    "prediction_type": "v_prediction",
}


def new_unet(latent_channels: int) -> UNet2DConditionModel:
    """The denoiser, at random; 16.9 M parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
    )


class Denoising(nn.Module):
    """The UNet with the training loss."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        alphas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
        self.register_buffer("alphas", alphas, persistent=False)

    def forward(self, states: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Scalar loss; states of the captions `[N, 16, 192]`, latents and noise `[N, C, 8, 8]`, timesteps `[N]`."""
        amount = torch.rand(2, len(states), 1, 1, device=states.device)
        amount = (amount[0] < NOISY_SHARE) * amount[1] * MOST_NOISE * states.float().std()
        states = states + amount * torch.randn_like(states)
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=states).sample
        snr = alpha.flatten() / (1 - alpha.flatten())
        weight = ((SNR_GAMMA + 1) / (snr + 1)).clamp(max=1)
        return (weight * F.mse_loss(predicted.float(), velocity, reduction="none").mean((1, 2, 3))).mean()


def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Moves the averaged weights towards the current ones: fast at first, then over `EMA_STEPS` steps."""
    decay = min(1 - 1 / EMA_STEPS, (1 + int(count)) / (10 + int(count)))
    get_ema_multi_avg_fn(decay)(averaged, current, count)


@torch.no_grad()
def cache_latents(folder: Path, world: World, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of the pictures, `[N, C, 8, 8]` each."""
    autoencoder = AutoencoderKL.from_pretrained(folder).float().to(rows.device).eval()
    return encode_all(autoencoder, Renderer(torch.from_numpy(world.art).to(rows.device)), rows)


def new_pipeline(
    autoencoder: Path, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts as one pipeline."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def generate(pipeline: StableDiffusionPipeline, captions: list[str], noise: float = 0.0) -> Tensor:
    """Pictures `[N, 3, 64, 64]` in 0..1 from captions, by `GENERATION`; `noise` is put on the text states."""
    generator = torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    states, empty = (
        pipeline.encode_prompt(texts, pipeline.device, 1, False)[0] for texts in (captions, [""] * len(captions))
    )
    states = states + noise * states.std() * torch.randn(states.shape, generator=generator).to(states)
    output = pipeline(
        prompt_embeds=states, negative_prompt_embeds=empty, generator=generator, output_type="pt", **GENERATION
    )
    return output.images.float()


def contact_sheet(pipeline: StableDiffusionPipeline, world: World, rows: Tensor, file: Path, noise: float) -> float:
    """Writes true pictures above generated ones; returns their mean PSNR, which sampling keeps low."""
    renderer = Renderer(torch.from_numpy(world.art).to(rows.device))
    true = renderer(rows)
    generated = generate(pipeline, [world.caption(row) for row in rows.tolist()], noise).to(rows.device)
    strips = zip(true.split(16), generated.split(16), strict=True)
    loop.save_contact_sheet([strip for pair in strips for strip in pair], file)
    return (-10 * (true - generated).pow(2).flatten(1).mean(1).clamp(min=1e-10).log10()).mean().item()


def main() -> None:
    """Caches latents, trains, saves the pipeline and draws with it."""
    parser = loop.arguments(__doc__.split("\n")[0], "image_decoder", minutes=45, batch=512)
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/nano/autoencoder"))
    parser.add_argument("--text-encoder", type=Path, default=Path("runs/nano/text_encoder"))
    args = parser.parse_args()
    world, device = loop.start(args)
    tokenizer = CLIPTokenizer.from_pretrained(args.text_encoder)
    text_encoder = CLIPTextModel.from_pretrained(args.text_encoder).to(device).eval().requires_grad_(False)
    captions = Captions(world, tokenizer, device)
    rows = loop.combinations(world, "train", args.concepts, device)
    means, deviations = cache_latents(args.autoencoder, world, rows)

    network = Denoising(new_unet(means.shape[1])).to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, multi_avg_fn=average)
    optimizer = loop.adamw([network], LEARNING_RATE)
    compute = torch.compile(network) if args.compile else network

    run = loop.Loop(args.out, args.minutes, optimizer, {"network": network, "averaged": averaged})
    for _ in run:
        chosen = torch.randint(len(rows), (args.batch,), device=device)
        latents = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        ids = captions(rows[chosen], varied=True)
        ids = torch.where(torch.rand(args.batch, 1, device=device) < EMPTY_SHARE, captions.empty, ids)
        timesteps = torch.randint(NOISE_SCHEDULE["num_train_timesteps"], (args.batch,), device=device)
        with loop.autocast(device):
            states = text_encoder(input_ids=ids).last_hidden_state
            loss = compute(states, latents, torch.randn_like(latents), timesteps)
        loop.update(optimizer, loss)
        averaged.update_parameters(network)
        run.record(args.batch, loss=loss)

    unet = averaged.module.unet.to(memory_format=torch.contiguous_format).eval()
    pipeline = new_pipeline(args.autoencoder, text_encoder, unet, tokenizer).to(torch.bfloat16)
    pipeline.save_pretrained(args.out, max_shard_size="20MB")
    (args.out / "generation_defaults.json").write_text(json.dumps(GENERATION, indent=1) + "\n", encoding="utf-8")
    pipeline = StableDiffusionPipeline.from_pretrained(args.out, dtype=torch.float32, safety_checker=None).to(device)
    dev = loop.combinations(world, "dev", args.concepts, device)
    dev = dev[torch.randperm(len(dev), generator=torch.Generator().manual_seed(0)).to(device)][:64]
    run.write_figures(
        args.out,
        parameters={"text_encoder": loop.parameter_count(text_encoder), "unet": loop.parameter_count(unet)},
        psnr_dev=contact_sheet(pipeline, world, dev, run.work / "sheet.png", noise=0.0),
        psnr_dev_noisy_text=contact_sheet(pipeline, world, dev, run.work / "sheet_noisy_text.png", noise=0.2),
    )


if __name__ == "__main__":
    main()
