"""Makes the clip decoder: a small text-to-video pipeline whose UNet learns the world's things in motion.

`python -m nextgpt.train.nano.models.clip_decoder --minutes 60` needs the picture autoencoder and the clips' text encoder,
which stay as they are. It caches the autoencoder's latents of the training clips' frames, trains the UNet on them and writes
a `TextToVideoSDPipeline`. It goes on from its last checkpoint when started again. It knows nothing of the assistant.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, TextToVideoSDPipeline, UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import ClipCaptions
from nextgpt.train.nano.models.denoising import Denoising, empty_some, new_scheduler, save, train
from nextgpt.train.nano.models.text_encoder import WIDTH
from nextgpt.train.nano.world.clips import FPS, FRAMES, Clip, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import Renderer

GENERATION = {
    **{"num_inference_steps": 20, "guidance_scale": 3.0, "height": 64, "width": 64},
    **{"num_frames": FRAMES, "fps": FPS},
}


def new_unet(latent_channels: int) -> UNet3DConditionModel:
    """The denoiser, at random; 4.5 M parameters."""
    return UNet3DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock3D",) * 2,
        up_block_types=("CrossAttnUpBlock3D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, renderer: ClipRenderer, rows: Tensor) -> Tensor:
    """Means of the latents of clips given as indices, `[N, 16, 8 frames, 8, 8]`."""
    latents = []
    for part in rows.split(32):
        frames = renderer(part).transpose(1, 2).flatten(0, 1)
        means = autoencoder.encode(frames * 2 - 1).latent_dist.mean
        latents.append(means.unflatten(0, (-1, FRAMES)).transpose(1, 2))
    return torch.cat(latents)


@torch.no_grad()
def contact_sheet(
    pipeline: TextToVideoSDPipeline, world: ClipWorld, renderer: ClipRenderer, rows: Tensor, file: Path
) -> None:
    """Writes the frames of true clips above those of generated ones."""
    pipeline.set_progress_bar_config(disable=True)
    options = {name: value for name, value in GENERATION.items() if name != "fps"}
    captions = [Clip(world.world.names[c], world.motions[m]).caption for c, m in rows.tolist()]
    made = pipeline(captions, generator=torch.Generator().manual_seed(0), output_type="pt", **options).frames
    true = renderer(rows).transpose(1, 2)
    loop.save_contact_sheet([strip for pair in zip(true, made, strict=True) for strip in pair], file)


def main() -> None:
    """Caches latents, trains, saves the pipeline and films with it."""
    parser = loop.arguments(__doc__.split("\n")[0], "clip_decoder", minutes=60, batch=128)
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/nano/autoencoder"))
    parser.add_argument("--text-encoder", type=Path, default=Path("runs/nano/clip_text_encoder"))
    args = parser.parse_args()
    pictures, device = loop.start(args)
    world = ClipWorld(pictures)
    tokenizer = CLIPTokenizer.from_pretrained(args.text_encoder)
    text_encoder = CLIPTextModel.from_pretrained(args.text_encoder).to(device).eval().requires_grad_(False)
    captions = ClipCaptions(world, tokenizer, device)
    renderer = ClipRenderer(pictures, Renderer(torch.from_numpy(pictures.art).to(device)))
    rows = world.rows("train", args.concepts).to(device)
    autoencoder = AutoencoderKL.from_pretrained(args.autoencoder).float().to(device).eval()
    clips = encode_all(autoencoder, renderer, rows)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(rows), (count,), device=device)
        ids = empty_some(captions(rows[chosen], varied=True), captions.empty)
        return text_encoder(input_ids=ids).last_hidden_state, clips[chosen]

    unet, run = train(args, Denoising(new_unet(clips.shape[1])), draw, device)
    pipeline = TextToVideoSDPipeline(
        vae=AutoencoderKL.from_pretrained(args.autoencoder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
    )
    save(pipeline, GENERATION | {"fixed": ["height", "width"]}, args.out)
    pipeline = TextToVideoSDPipeline.from_pretrained(args.out, dtype=torch.float32).to(device)
    contact_sheet(pipeline, world, renderer, world.rows("dev").to(device)[:8], run.work / "sheet.png")
    run.write_figures(
        args.out,
        parameters={"text_encoder": loop.parameter_count(text_encoder), "unet": loop.parameter_count(unet)},
    )


if __name__ == "__main__":
    main()
