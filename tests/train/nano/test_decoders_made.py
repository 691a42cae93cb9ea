"""The making of autoencoders, text encoders and decoders, in seconds, on artwork and sounds made up for it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SD3Transformer2DModel
from torch.nn import functional as F

from nextgpt.decoders import DECODERS, load_decoder
from nextgpt.train.nano import assemble
from nextgpt.train.nano.models import autoencoder, decoder, refinement, text_encoders
from nextgpt.train.nano.models.captions import picture_captions, picture_numbers
from nextgpt.train.nano.models.denoising import Cached, Denoising, draw_timesteps, new_scheduler
from nextgpt.train.nano.world.clips import Clip
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.sounds import Sound
from nextgpt.train.nano.world.things import Picture
from steady_clock import steady

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
MEDIA = {
    "image": Picture("dog", "flat", "red", "large"),
    "audio": Sound("flute", "low", "chord"),
    "video": Clip("dog", "spinning"),
}


@pytest.fixture(scope="module")
def make(small_world, tmp_path_factory):
    """Runs a maker for some steps and returns the folder that it wrote; each part is made once."""
    root = tmp_path_factory.mktemp("parts")

    def run(module: str, modality: str) -> Path:
        maker = importlib.import_module(f"nextgpt.train.nano.models.{module}")
        out = root / maker.FOLDERS[modality]
        if not (out / "training_log.json").exists():
            words = f"{module} {modality} --world {small_world} --out {out} --minutes 0.3 --batch 4 --device cpu".split()
            with pytest.MonkeyPatch.context() as patch:
                steady(patch)
                patch.setattr("sys.argv", [*words, *(["--root", str(root)] if "decoder" in maker.FOLDERS[modality] else [])])
                maker.main()
        return out

    return run


@pytest.mark.parametrize("modality", autoencoder.FOLDERS)
def test_an_autoencoder_learns_and_is_saved_as_pipelines_read_it(modality, make):
    out = make("autoencoder", modality)
    log = json.loads((out / "training_log.json").read_text(encoding="utf-8"))
    first, last = (sum(log["curve"][row][part] for part in ("pixels", "edges")) for row in (0, -1))
    assert last < first
    assert (out.with_name(out.name + ".work") / "sheet.png").is_file()
    made = AutoencoderDC.from_pretrained(out)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["block_out_channels"] == [
        n * made.config.in_channels for n in (4, 4, 16, 64)
    ]
    pixels = torch.rand(2, made.config.in_channels, 64, 80)
    assert made.encode(pixels).latent.shape == (2, 24, 8, 10)


def test_latents_are_the_principal_components_of_patches():
    torch.manual_seed(0)
    pixels = F.interpolate(torch.rand(40, 3, 4, 4), size=64, mode="bicubic") * 2 - 1  # smooth: few components tell all
    made = autoencoder.new_autoencoder(pixels)
    latents = autoencoder.encode(made, pixels)
    assert latents.shape == (40, 24, 8, 8)
    assert latents.mean().abs() < 1e-4 and latents.std() == pytest.approx(1, abs=1e-2)
    covariance = latents.movedim(1, -1).flatten(0, -2).T.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert (covariance.diag().diff() < 1e-4).all(), "the first tells most"
    half = autoencoder.encode(made, (pixels[:20] + pixels[20:]) / 2)
    torch.testing.assert_close(half, (latents[:20] + latents[20:]) / 2, atol=1e-4, rtol=0)
    far, near = torch.pdist(pixels.flatten(1)), torch.pdist(latents.flatten(1))
    ratio = near / far
    assert ratio.std() / ratio.mean() < 0.02, "as far apart as the pictures"


def test_the_autoencoder_of_pictures_sees_artwork_anywhere(small_world):
    world = World(small_world)
    draw = autoencoder.AnyPictures(Renderer(torch.from_numpy(world.art)), world.combinations("train"))
    pictures = draw(64)
    assert pictures.shape == (64, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    assert len({tuple(picture[:, 0, 0].tolist()) for picture in pictures}) > 20, "colours that are none of the world's"


@pytest.mark.parametrize("modality", text_encoders.KINDS)
def test_what_a_text_encoder_makes_of_unlike_captions_stands_apart(modality, make):
    log = json.loads((make("text_encoders", modality) / "training_log.json").read_text(encoding="utf-8"))
    assert log["curve"][-2]["readings"] < log["curve"][0]["readings"]  # the last row is of a single step
    assert log["figures"]["least_distance"] > 0


@pytest.mark.parametrize("modality", MEDIA)
def test_a_decoder_is_made_and_read_by_its_kind(modality, make):
    if modality == "audio":
        make("autoencoder", "audio")
    else:
        make("autoencoder", "image")
    make("text_encoders", modality)
    out = make("decoder", modality)
    made = load_decoder(assemble.DECODERS[modality][0], out)
    assert DECODERS[made.kind].modality == modality
    conditioning = made.encode([MEDIA[modality].caption])
    [medium] = made.generate(conditioning, seeds=[0], num_inference_steps=2)
    match modality:
        case "image":
            assert medium.size == (64, 64)
        case "audio":
            assert medium.sampling_rate == 16_000 and len(medium.array) == 32_000 and np.isfinite(medium.array).all()
        case "video":
            assert medium.frames.shape == (8, 64, 64, 3) and medium.fps == 4


def test_strangers_are_told_by_a_code_beside_what_is_said_of_things_in_their_combination():
    states = torch.tensor([[1.0, 0], [3, 0], [0, 1], [0, 5], [9, 9]])  # two things in two combinations; the empty caption
    states = torch.nn.functional.pad(states, (0, decoder.POOLED - 2))
    alike = torch.tensor([[True, True, False, False], [False, False, True, True]])
    latents = torch.arange(10.0).view(10, 1, 1, 1)
    media = decoder.Media(latents[:4], torch.arange(4), lambda count: torch.zeros(count, dtype=torch.long), None)
    codes, often = torch.tensor([[1], [1], [2], [2], [3], [3]]), torch.ones(6)
    others = decoder.Others(latents[4:], alike.repeat(3, 1), codes, often)
    given, media = decoder.with_others({"pooled_prompt_embeds": states}, media, others)
    told = given["pooled_prompt_embeds"]
    assert torch.equal(told[:4], states[:4]) and torch.equal(told[-1], states[-1]) and len(told) == 5 + 6
    first, second = told[4:10].unflatten(0, (3, 2)).unbind(1)
    torch.testing.assert_close(first - second, (states[:2].mean(0) - states[2:4].mean(0)).expand(3, -1))
    assert torch.pdist(first).min() > 0 and media.latents.flatten().tolist() == list(range(10))
    assert media.captions.tolist() == list(range(10))
    chosen = media.choose(2000)
    assert set(chosen.tolist()) == {0, *range(4, 10)} and (chosen == 0).sum() == 1000


def test_what_an_instrument_practises_is_told_by_its_captions_and_a_code_of_the_pattern():
    states = torch.nn.functional.pad(torch.tensor([[1.0, 0], [3, 0], [0, 0]]), (0, decoder.POOLED - 2))
    media = decoder.Media(torch.zeros(2, 1, 1, 1), torch.arange(2), lambda count: torch.zeros(count, dtype=torch.long), None)
    alike = torch.tensor([[True, True], [True, True], [True, False]])
    others = decoder.Others(torch.ones(3, 1, 1, 1), alike, torch.tensor([[1, 0], [2, 0], [0, 0]]), torch.tensor([0.0, 0, 1]))
    given, media = decoder.with_others({"pooled_prompt_embeds": states}, media, others)
    first, second, third = given["pooled_prompt_embeds"][2:5]
    assert torch.equal(third, states[0]), "nothing more is said of it than its caption says"
    assert (first - second).norm() > 0 and (first - states[:2].mean(0)).norm() > 0
    assert set(media.choose(100).tolist()) == {0, 4}


def test_mixtures_are_two_instruments_playing_the_same():
    instruments = torch.eye(3)[:, None].expand(3, 2, 3)  # each in a sample of its own
    mixed = decoder.mixtures(instruments, 20)
    assert mixed.shape == (20, 2, 3) and torch.equal(mixed[:, 0], mixed[:, 1])
    assert ((mixed[:, 0] > 0).sum(1) == 2).all() and torch.allclose(mixed.amax(-1), torch.tensor(0.8))


@pytest.mark.parametrize("modality", refinement.FOLDERS)
def test_an_autoencoder_is_refined_on_what_the_denoiser_makes(modality, make):
    before = AutoencoderDC.from_pretrained(make("autoencoder", modality)).state_dict()
    for module in ("text_encoders", "decoder"):
        make(module, modality)
    out = make("refinement", modality)
    log = json.loads((out / "training_log.json").read_text(encoding="utf-8"))
    assert log["curve"][-1]["made_pixels"] < log["curve"][0]["made_pixels"]
    after = AutoencoderDC.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith("encoder."))
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])
    assert load_decoder(assemble.DECODERS[modality][0], out.parent).encode([MEDIA[modality].caption])


def test_what_is_cached_is_what_the_decoder_says_of_a_caption(small_world, make):
    make("autoencoder", "image")
    encoder = text_encoders.CLIPTextModelWithProjection.from_pretrained(make("text_encoders", "image"))
    world = World(small_world)
    captions, _ = picture_captions(world)
    cached = text_encoders.encode_captions(encoder.eval(), captions)
    rows = world.combinations("dev")[:3]
    texts = [world.caption(row) for row in rows.tolist()]
    said = load_decoder("stable-diffusion-3", make("decoder", "image"), dtype=torch.bfloat16).encode(texts)
    for name, states in said.items():
        found = cached[name][picture_numbers(world, rows)].float()
        torch.testing.assert_close(states.float(), found, atol=0.05, rtol=0.05)


def test_a_denoiser_learns_the_sample_itself():
    torch.manual_seed(0)
    small = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32}
    denoiser = SD3Transformer2DModel(
        sample_size=4, patch_size=4, in_channels=2, out_channels=2, joint_attention_dim=8, pooled_projection_dim=4, **small
    )
    network = Denoising(denoiser, decoder.call)
    states = {"prompt_embeds": torch.randn(3, 5, 8), "pooled_prompt_embeds": torch.randn(3, 4)}
    cached = Cached(states, torch.randn(2, 2, 4, 4), torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        conditioning, latents = cached.draw(torch.randint(2, (16,)))
        loss = network(conditioning, latents, torch.randn_like(latents), draw_timesteps(16, torch.device("cpu")))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler, made = new_scheduler(), torch.randn(2, 2, 4, 4)
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for step in scheduler.timesteps:
            given = {name: tensor[:2] for name, tensor in states.items()}
            made = scheduler.step(network.call(denoiser, made, step.expand(2), given), step, made).prev_sample
    assert (made - cached.latents).square().mean() < 0.2 * cached.latents.var()
