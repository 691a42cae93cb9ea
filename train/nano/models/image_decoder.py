"""Makes the picture decoder: a small Stable Diffusion whose UNet learns to draw the world from its captions.

`python -m nextgpt.train.nano.models.image_decoder --minutes 45` needs the autoencoder and the text encoder, which stay as
they are. It caches the autoencoder's latents of the training pictures, trains the UNet on them and writes a
`StableDiffusionPipeline`. It goes on from its last checkpoint when started again. It knows nothing of the assistant.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.autoencoder import encode_all
from nextgpt.train.nano.models.captions import Captions
from nextgpt.train.nano.models.denoising import Denoising, empty_some, new_scheduler, save, train
from nextgpt.train.nano.models.text_encoder import WIDTH
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import Renderer, World

GENERATION = {"num_inference_steps": 20, "guidance_scale": 3.0, "height": 64, "width": 64}


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
        scheduler=new_scheduler(),
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
    rows = sampling.combinations(world, "train", args.concepts, device)
    means, deviations = cache_latents(args.autoencoder, world, rows)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(rows), (count,), device=device)
        latents = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        ids = empty_some(captions(rows[chosen], varied=True), captions.empty)
        return text_encoder(input_ids=ids).last_hidden_state, latents

    unet, run = train(args, Denoising(new_unet(means.shape[1])), draw, device)
    pipeline = new_pipeline(args.autoencoder, text_encoder, unet, tokenizer)
    save(pipeline, GENERATION | {"fixed": ["height", "width"]}, args.out)
    pipeline = StableDiffusionPipeline.from_pretrained(args.out, dtype=torch.float32, safety_checker=None).to(device)
    dev = sampling.combinations(world, "dev", args.concepts, device)
    dev = dev[torch.randperm(len(dev), generator=torch.Generator().manual_seed(0)).to(device)][:64]
    run.write_figures(
        args.out,
        parameters={"text_encoder": loop.parameter_count(text_encoder), "unet": loop.parameter_count(unet)},
        psnr_dev=contact_sheet(pipeline, world, dev, run.work / "sheet.png", noise=0.0),
        psnr_dev_noisy_text=contact_sheet(pipeline, world, dev, run.work / "sheet_noisy_text.png", noise=0.2),
    )


if __name__ == "__main__":
    main()
