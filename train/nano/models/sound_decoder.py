"""Makes the sound decoder: a small AudioLDM whose UNet learns to play the world from its captions.

`python -m nextgpt.train.nano.models.sound_decoder --minutes 130` needs the sound autoencoder and the sound text encoder,
which stay as they are. It caches the latents of the training sounds, trains the UNet on them and writes an
`AudioLDMPipeline`. It goes on from its last checkpoint when started again. It knows nothing of the assistant.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AudioLDMPipeline, AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapTextModelWithProjection, RobertaTokenizer

from nextgpt.decoders.vocoder import GriffinLimVocoder
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.denoising import Denoising, empty_some, new_scheduler, save, train
from nextgpt.train.nano.models.sound_autoencoder import (
    FRAMES,
    VOCODER,
    as_pictures,
    encode_all,
    spectrograms,
    spectrograms_of,
)
from nextgpt.train.nano.models.sound_text_encoder import WIDTH, SoundCaptions, embed
from nextgpt.train.nano.world.sounds import SECONDS, SoundWorld

GENERATION = {"num_inference_steps": 20, "guidance_scale": 2.0, "duration": SECONDS}
CHANNELS = (48, 96)


def new_unet(latent_channels: int) -> UNet2DConditionModel:
    """The denoiser, at random, 2.8 M parameters.

    The caption's vector reaches every block beside the time, as AudioLDM has it.
    """
    return UNet2DConditionModel(
        sample_size=FRAMES // 8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=CHANNELS,  # without text states these attend to the sound itself
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )


def new_pipeline(
    autoencoder: Path,
    text_encoder: ClapTextModelWithProjection,
    unet: UNet2DConditionModel,
    tokenizer: RobertaTokenizer,
) -> AudioLDMPipeline:
    """The parts as one pipeline, with phase reconstruction for its vocoder."""
    return AudioLDMPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        vocoder=GriffinLimVocoder(VOCODER),
    )


@torch.no_grad()
def generate(pipeline: AudioLDMPipeline, captions: list[str]) -> Tensor:
    """Sounds `[N, samples]` from captions, by `GENERATION`."""
    pipeline.set_progress_bar_config(disable=True)
    options = {name: value for name, value in GENERATION.items() if name != "duration"}
    output = pipeline(
        captions, audio_length_in_s=SECONDS, generator=torch.Generator().manual_seed(0), output_type="pt", **options
    )
    return output.audios.float()


def main() -> None:
    """Caches latents, trains, saves the pipeline and plays with it."""
    parser = loop.arguments(__doc__.split("\n")[0], "sound_decoder", minutes=130, batch=256)
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/nano/sound_autoencoder"))
    parser.add_argument("--text-encoder", type=Path, default=Path("runs/nano/sound_text_encoder"))
    args = parser.parse_args()
    _, device = loop.start(args)
    world = SoundWorld(args.world)
    tokenizer = RobertaTokenizer.from_pretrained(args.text_encoder)
    text_encoder = ClapTextModelWithProjection.from_pretrained(args.text_encoder).to(device).eval().requires_grad_(False)
    captions = SoundCaptions(world, tokenizer, device)
    rows = world.rows("train", args.concepts).to(device)
    varied, waveforms = world.variations(args.concepts)
    autoencoder = AutoencoderKL.from_pretrained(args.autoencoder).float().to(device)
    mels = torch.cat([spectrograms(world, rows), spectrograms_of(waveforms).to(device)])
    means, deviations = encode_all(autoencoder, mels)
    rows, plain = torch.cat([rows, varied.to(device)]), len(rows)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(rows), (count,), device=device)
        chosen[: count // 4] %= plain  # the others vary: with one sound for each caption it learns by heart
        latents = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        ids = empty_some(captions(rows[chosen], varied=True), captions.empty)
        return embed(text_encoder, ids, captions.padding), latents

    unet, run = train(args, Denoising(new_unet(means.shape[1]), takes="class_labels"), draw, device)
    pipeline = new_pipeline(args.autoencoder, text_encoder, unet, tokenizer)
    save(pipeline, GENERATION, args.out)
    pipeline = AudioLDMPipeline.from_pretrained(args.out, dtype=torch.float32).to(device)
    dev = world.rows("dev").to(device)[:32]
    heard = generate(pipeline, [world.combinations[row].caption for row in dev.tolist()])
    true = spectrograms(world, dev)
    made = spectrograms_of(heard.cpu()).to(device)
    loop.save_contact_sheet([as_pictures(true[:12]), as_pictures(made[:12])], run.work / "sheet.png")
    run.write_figures(
        args.out,
        parameters={"text_encoder": loop.parameter_count(text_encoder), "unet": loop.parameter_count(unet)},
        log_mel_error_dev=F.l1_loss(made, true).item(),
    )


if __name__ == "__main__":
    main()
