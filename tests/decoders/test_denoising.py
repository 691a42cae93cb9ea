"""The denoising loss: which objective a scheduler has, and that its gradients reach the conditioning alone."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import EDMDPMSolverMultistepScheduler
from PIL import Image

from media_values import CAPTIONS, noise_picture
from nextgpt.decoders import Audio, Video, load_decoder
from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.decoders.objectives import preconditioned, training_objective
from tiny_decoders import TINY_DECODERS, save_tiny_stable_diffusion

every_kind = pytest.mark.parametrize("kind", TINY_DECODERS)
pytestmark = pytest.mark.usefixtures("one_thread")  # layers this small lose more to threads than they gain


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_denoising_loss_is_that_of_the_schedule(prediction_type, tmp_path):
    decoder = load_decoder("stable-diffusion", save_tiny_stable_diffusion(tmp_path, prediction_type=prediction_type))
    latents = torch.randn(2, 4, 16, 16)
    conditioning = decoder.encode(CAPTIONS[:2])
    loss = decoder.denoising_loss(conditioning, latents, generator=torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(1000, (2,), generator=generator)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = (1 - betas).cumprod(0)[timesteps].view(2, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    prediction = decoder.pipeline.unet(noisy, timesteps, encoder_hidden_states=conditioning["prompt_embeds"]).sample
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    expected = F.mse_loss(prediction, noise if prediction_type == "epsilon" else velocity)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("kind", "shift"), [("stable-diffusion-3", 3.0), ("wan", 3.0)])
def test_flow_matching_asks_for_the_way_from_sample_to_noise(kind, shift, decoders):
    """As diffusers' training script of SD3 has it; Wan's sampler is UniPC, with flow matching in its configuration."""
    decoder = decoders[kind]
    latents = torch.randn(2, 4, 16, 16) if kind == "stable-diffusion-3" else torch.randn(2, 16, 2, 4, 4)
    conditioning = decoder.encode(CAPTIONS[:2])
    loss = decoder.denoising_loss(conditioning, latents, generator=torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(latents.shape, generator=generator)
    index = (torch.normal(0.0, 1.0, (2,), generator=generator).sigmoid() * 1000).long()
    sigmas = torch.linspace(1000, 1, 1000)[index] / 1000
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    each = sigmas.view(2, *[1] * (latents.ndim - 1))
    inputs = {"hidden_states": (1 - each) * latents + each * noise, "timestep": sigmas * 1000}
    inputs["encoder_hidden_states"] = conditioning["prompt_embeds"]
    if kind == "stable-diffusion-3":
        inputs["pooled_projections"] = conditioning["pooled_prompt_embeds"]
    prediction = decoder.pipeline.transformer(**inputs).sample
    torch.testing.assert_close(loss, F.mse_loss(prediction, noise - latents), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_of_a_preconditioned_denoiser_is_the_sample(prediction_type):
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type=prediction_type)
    latents = torch.randn(64, 4, 8)
    noised = preconditioned(scheduler)(latents, torch.Generator().manual_seed(0))
    sigmas = (4 * noised.timesteps).exp()
    assert sigmas.min() > scheduler.config.sigma_min and sigmas.max() < scheduler.config.sigma_max
    sigmas = sigmas[:, None, None]
    noisy = noised.latents * (sigmas**2 + 1) ** 0.5
    torch.testing.assert_close(scheduler.precondition_outputs(noisy, noised.target, sigmas), latents, atol=1e-3, rtol=1e-3)


def test_stable_audios_published_scheduler_is_known():
    training_objective({"_class_name": "CosineDPMSolverMultistepScheduler", "prediction_type": "v_prediction"})


@pytest.mark.parametrize("scheduler", ["CogVideoXDDIMScheduler", "ConsistencyDecoderScheduler"])
def test_a_scheduler_without_an_objective_is_refused_by_name_before_anything_loads(scheduler, own_folder):
    folder = own_folder("stable-diffusion")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"_class_name": scheduler}))
    decoder = load_decoder("stable-diffusion", folder)
    with pytest.raises(ValueError, match=f"'stable-diffusion' at .*: its scheduler {scheduler} .*no denoising loss"):
        decoder.check_trainable()


def test_a_flow_schedulers_configuration_is_never_read_as_a_table_of_betas(own_folder):
    """diffusers' DDPMScheduler would take it in silence."""
    folder = own_folder("stable-diffusion")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"))
    decoder = load_decoder("stable-diffusion", folder)
    told = []
    decoder.pipeline.unet.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    latents = torch.zeros(8, 4, 16, 16)
    decoder.denoising_loss(decoder.encode(["x"] * 8), latents, generator=torch.Generator().manual_seed(0))
    assert 0.3 < told[0].std() < 0.7, "samples of zeros hold sigma times noise, with sigma around a half"


def test_a_wan_of_two_transformers_has_no_denoising_loss(own_folder):
    folder = own_folder("wan")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"expand_timesteps": True}))
    with pytest.raises(ValueError, match="Wan 2.2"):
        load_decoder("wan", folder).check_trainable()


@every_kind
def test_the_denoising_loss_teaches_the_conditioning_and_nothing_else(kind, decoders):
    decoder = decoders[kind]
    conditioning = decoder.encode(CAPTIONS)
    media = decoder.generate(conditioning, seeds=[1, 2, 3], num_inference_steps=1)
    latents = decoder.encode_media(media)
    assert len(latents) == 3 and latents.isfinite().all()
    for tensor in conditioning.values():
        tensor.requires_grad_(True)
    loss = decoder.denoising_loss(conditioning, latents)
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in conditioning.values())
    assert all(parameter.grad is None for parameter in getattr(decoder.pipeline, decoder.denoiser).parameters())


def test_latents_have_the_shape_that_generation_starts_from(decoders):
    picture, sound, clip = (decoders[kind] for kind in ("stable-diffusion", "audioldm", "text-to-video"))
    assert picture.encode_media([Image.new("L", (50, 20))]).shape == (1, 4, 16, 16)
    stereo_rate = Audio(np.zeros(100, np.float32), 8000)
    assert sound.encode_media([stereo_rate], duration=0.3).shape == (1, 4, 19, 8)
    assert clip.encode_media([Video(np.zeros((3, 50, 20, 3), np.uint8), 8)]).shape == (1, 4, 3, 16, 16)
    assert decoders["stable-audio"].encode_media([stereo_rate]).shape == (1, 4, 32)
    assert decoders["wan"].encode_media([Video(np.zeros((8, 50, 20, 3), np.uint8), 8)]).shape == (1, 16, 2, 4, 4)


@pytest.mark.parametrize("kind", ["stable-diffusion", "stable-diffusion-3"])
def test_pictures_come_back_from_their_latents_scaled_as_the_pipeline_scales_them(kind, own_folder):
    """The pipeline undoes on the latents what `encode_media` did to them, be there a shift or none."""
    folder = own_folder(kind)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5 if kind.endswith("3") else None}))
    decoder = load_decoder(kind, folder)
    picture = noise_picture(60, (32, 32))
    vae = decoder.pipeline.vae
    pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    shift = vae.config.shift_factor or 0.0
    latents = decoder.encode_media([picture]) / vae.config.scaling_factor + shift
    torch.testing.assert_close(latents, vae.encode(pixels).latent_dist.mode(), atol=1e-4, rtol=1e-4)


def test_the_spectrogram_is_of_magnitudes_in_natural_logarithms():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None]
    quiet, loud = (log_mel_spectrogram(tone * gain, 16000, 160, 64) for gain in (0.01, 0.1))
    assert quiet.shape == (1, 101, 64)
    peak = loud[0, 50].argmax()
    assert loud[0, 50, peak] - quiet[0, 50, peak] == pytest.approx(np.log(10), abs=1e-3)
    assert log_mel_spectrogram(torch.zeros(1, 16000), 16000, 160, 64).unique().item() == pytest.approx(np.log(1e-5))
