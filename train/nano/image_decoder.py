"""Makes the picture decoder: a small Stable Diffusion whose text encoder and UNet learn the world together.

`python -m nextgpt.train.nano.image_decoder --minutes 30` needs the autoencoder, caches its latents of the training
pictures, trains on them by v-prediction and writes a `StableDiffusionPipeline`. It goes on from its last checkpoint
when started again. It knows nothing of the assistant, save that the text states it learns to read will later come,
slightly wrong, from an output projection: so it trains with noise on them.
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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nextgpt.train.nano import loop
from nextgpt.train.nano.autoencoder import encode_all
from nextgpt.train.nano.captions import CONTEXT, Captions, train_tokenizer
from nextgpt.train.nano.world import Renderer, World

TEXT_WIDTH = 192
LEARNING_RATE = 6e-4
SNR_GAMMA = 5.0  # Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"
EMPTY_SHARE = 0.1  # of the captions are empty, for classifier-free guidance
NOISY_SHARE = 0.5  # of the text states get noise
MOST_NOISE = 0.4  # in units of the text states' own deviation
EMA_STEPS = 300
GENERATION = {"num_inference_steps": 20, "guidance_scale": 3.0, "height": 64, "width": 64}
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",  # ends in pure noise, which the few, nearly independent latents need
    "prediction_type": "v_prediction",
}


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, at random; 2.2 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


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
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
    )


class TextToLatents(nn.Module):
    """The text encoder and the UNet as one network, with the training loss."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet
        alphas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
        self.register_buffer("alphas", alphas, persistent=False)

    def forward(self, ids: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Scalar loss; ids `[N, 16]`, latents and noise `[N, C, 8, 8]`, timesteps `[N]`."""
        states = self.text_encoder(input_ids=ids).last_hidden_state  # [N, 16, 192]
        amount = torch.rand(2, len(ids), 1, 1, device=ids.device)
        amount = (amount[0] < NOISY_SHARE) * amount[1] * MOST_NOISE * states.detach().float().std()
        states = states + amount * torch.randn_like(states)
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=states).sample
        snr = alpha.flatten() / (1 - alpha.flatten())
        weight = snr.clamp(max=SNR_GAMMA) / (snr + 1)
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
    parser = loop.arguments(__doc__.split("\n")[0], "image_decoder", minutes=30, batch=512)
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/nano/autoencoder"))
    parser.add_argument(
        "--keep-text-encoder",
        action="store_true",
        help="go on with the UNet alone: what was aligned with the texts stays so",
    )
    args = parser.parse_args()
    world, device = loop.start(args)
    tokenizer = train_tokenizer(world)
    captions = Captions(world, tokenizer, device)
    rows = loop.combinations(world, "train", args.concepts, device)
    means, deviations = cache_latents(args.autoencoder, world, rows)

    network = TextToLatents(new_text_encoder(tokenizer), new_unet(means.shape[1]))
    network = network.to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, multi_avg_fn=average)
    optimizer = loop.adamw([network], LEARNING_RATE)
    compute = torch.compile(network) if args.compile else network

    run = loop.Loop(args.out, args.minutes, optimizer, {"network": network, "averaged": averaged})
    if args.keep_text_encoder:
        kept = CLIPTextModel.from_pretrained(args.out / "text_encoder", dtype=torch.float32).state_dict()
        for each in (network.text_encoder, averaged.module.text_encoder):
            each.load_state_dict(kept)
            each.requires_grad_(False)
    for _ in run:
        chosen = torch.randint(len(rows), (args.batch,), device=device)
        latents = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        ids = captions(rows[chosen], varied=True)
        ids = torch.where(torch.rand(args.batch, 1, device=device) < EMPTY_SHARE, captions.empty, ids)
        timesteps = torch.randint(NOISE_SCHEDULE["num_train_timesteps"], (args.batch,), device=device)
        with loop.autocast(device):
            loss = compute(ids, latents, torch.randn_like(latents), timesteps)
        loop.update(optimizer, loss)
        averaged.update_parameters(network)
        run.record(args.batch, loss=loss)

    best = averaged.module.to(memory_format=torch.contiguous_format).bfloat16().eval()
    new_pipeline(args.autoencoder, best.text_encoder, best.unet, tokenizer).to(torch.bfloat16).save_pretrained(
        args.out, max_shard_size="20MB"
    )
    (args.out / "generation_defaults.json").write_text(json.dumps(GENERATION, indent=1) + "\n", encoding="utf-8")
    pipeline = StableDiffusionPipeline.from_pretrained(args.out, dtype=torch.float32, safety_checker=None).to(device)
    dev = loop.combinations(world, "dev", args.concepts, device)
    dev = dev[torch.randperm(len(dev), generator=torch.Generator().manual_seed(0)).to(device)][:64]
    run.write_figures(
        args.out,
        parameters={"text_encoder": loop.parameter_count(best.text_encoder), "unet": loop.parameter_count(best.unet)},
        psnr_dev=contact_sheet(pipeline, world, dev, run.work / "sheet.png", noise=0.0),
        psnr_dev_noisy_text=contact_sheet(pipeline, world, dev, run.work / "sheet_noisy_text.png", noise=0.2),
    )


if __name__ == "__main__":
    main()
