"""Decoders: what a user of frozen diffusion pipelines would miss. Tiny random pipelines of the real classes."""

import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from nextgpt.decoders import DECODERS, Audio, GenerationCancelled, Video, conditioning_shape, load_decoder
from nextgpt.decoders.audioldm import log_mel_spectrogram
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video

SAVE_TINY = {
    "stable-diffusion": save_tiny_stable_diffusion,
    "audioldm": save_tiny_audioldm,
    "text-to-video": save_tiny_text_to_video,
}
CAPTIONS = ["a large banana, 3d style, blue background", "rain", "a violin"]
every_kind = pytest.mark.parametrize("kind", SAVE_TINY)
pytestmark = pytest.mark.usefixtures("one_thread")  # layers this small lose more to threads than they gain


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save(tmp_path_factory.mktemp(kind)) for kind, save in SAVE_TINY.items()}


@pytest.fixture(scope="module")
def decoders(folders):
    return {kind: load_decoder(kind, str(folder)) for kind, folder in folders.items()}


@pytest.fixture
def own_folder(folders, tmp_path):
    """A copy that a test may damage."""
    return lambda kind: shutil.copytree(folders[kind], tmp_path / "decoder")


def values(item) -> np.ndarray:
    """A media item's numbers, in [0, 1] for pictures and clips."""
    match item:
        case Audio():
            return item.array
        case Video():
            return item.frames / 255
        case Image.Image():
            return np.asarray(item) / 255


def assert_same(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        # One step of an 8-bit colour; sounds of amplitude 1 differ by the rounding of float32 (2e-5 was seen).
        np.testing.assert_allclose(values(a), values(b), rtol=0, atol=1e-4 if isinstance(a, Audio) else 1.01 / 255)


def assert_different(a, b) -> None:
    assert np.abs(values(a) - values(b)).max() > 5e-3


def count_calls(module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# Embeddings in, media out


@every_kind
def test_encode_equals_the_pipelines_own_embedding(kind, folders, decoders):
    pipeline = getattr(diffusers, DECODERS[kind].pipeline_class).from_pretrained(folders[kind])
    if kind == "audioldm":
        inputs = pipeline.tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt")
        expected = F.normalize(pipeline.text_encoder(**inputs).text_embeds, dim=-1)[:, None]
    else:
        expected, _ = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
    embeddings = decoders[kind].encode(CAPTIONS)
    assert embeddings.shape == (3, *decoders[kind].conditioning_shape)
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)


@every_kind
def test_captions_that_are_too_long_are_told_of_once_and_not_repeated(kind, folders, caplog):
    decoder, long = load_decoder(kind, str(folders[kind])), "a bird and " * 200
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)  # diffusers does not pass its messages on to the root logger
    try:
        assert torch.equal(*decoder.encode([long, long + "a cat"]))
        decoder.encode([long])
    finally:
        diffusers_logger.removeHandler(caplog.handler)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    [warning] = [message for message in told if "tokens" in message]
    assert f"'{kind}' reads the beginning" in warning and not any("a bird" in message for message in told)


@every_kind
def test_a_captions_embedding_gives_what_the_pipeline_makes_of_the_caption(kind, folders, decoders):
    decoder = decoders[kind]
    mine = decoder.generate(decoder.encode(CAPTIONS), seeds=[3, 4, 5], num_inference_steps=3, guidance_scale=6.0)

    pipeline = getattr(diffusers, decoder.pipeline_class).from_pretrained(folders[kind])
    size = {"height": 32, "width": 32, "num_frames": 4} if kind == "text-to-video" else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    theirs = pipeline(CAPTIONS, num_inference_steps=3, guidance_scale=6.0, generator=generators, **size)
    if kind == "stable-diffusion":
        expected = theirs.images
    elif kind == "audioldm":
        expected = [Audio(audio, 4000) for audio in theirs.audios]
    else:
        expected = [Video((frames * 255).round().astype(np.uint8), 4) for frames in theirs.frames]
    assert_same(mine, expected)


@every_kind
def test_a_batch_equals_its_items_made_alone(kind, decoders):
    decoder = decoders[kind]
    conditioning = decoder.encode(CAPTIONS)
    batch = decoder.generate(conditioning, seeds=[7, 8, 7], num_inference_steps=2)
    alone = [
        decoder.generate(conditioning[i : i + 1], seeds=[seed], num_inference_steps=2)[0] for i, seed in enumerate([7, 8, 7])
    ]
    assert_same(batch, alone)


@every_kind
def test_the_seed_and_the_conditioning_both_decide(kind, decoders):
    decoder = decoders[kind]
    shape = decoder.conditioning_shape
    one, other = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    first, again, other_seed, other_conditioning = (
        decoder.generate(conditioning, seeds=[seed], num_inference_steps=2, guidance_scale=30.0)[0]
        for conditioning, seed in [(one, 1), (one, 1), (one, 2), (other, 1)]
    )
    np.testing.assert_array_equal(values(first), values(again))
    assert_different(first, other_seed)
    assert_different(first, other_conditioning)


@every_kind
def test_the_text_encoder_sees_only_the_empty_prompt_at_inference(kind, folders, monkeypatch):
    pipeline = getattr(diffusers, DECODERS[kind].pipeline_class).from_pretrained(folders[kind])
    tokenizer, text_encoder_class = pipeline.tokenizer, type(pipeline.text_encoder)
    empty = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    forward, calls = text_encoder_class.forward, []

    def forward_of_the_empty_prompt(self, input_ids, *args, **kwargs):
        assert torch.equal(input_ids, empty), "the text encoder was called for a prompt"
        calls.append(1)
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(text_encoder_class, "forward", forward_of_the_empty_prompt)
    decoder = load_decoder(kind, folders[kind])
    conditioning = torch.randn(2, *decoder.conditioning_shape)
    for _ in range(2):
        decoder.generate(conditioning, seeds=[1, 2], num_inference_steps=1)
    assert len(calls) == 1  # cached
    with pytest.raises(AssertionError, match="called for a prompt"):
        decoder.encode(["a banana"])


def test_size_options_set_the_size(decoders):
    picture, sound, clip = (decoders[kind] for kind in SAVE_TINY)
    options = {"seeds": [0], "num_inference_steps": 1}
    image = picture.generate(picture.encode(["x"]), **options, height=16, width=48)[0]
    assert image.size == (48, 16)
    audio = sound.generate(sound.encode(["x"]), **options, duration=0.3)[0]
    assert audio.array.shape == (1200,) and audio.array.dtype == np.float32 and audio.sampling_rate == 4000
    video = clip.generate(clip.encode(["x"]), **options, num_frames=3, height=16, fps=12)[0]
    assert video.frames.shape == (3, 16, 32, 3) and video.frames.dtype == np.uint8 and video.fps == 12


def test_defaults_come_from_the_folders_file(own_folder):
    folder = own_folder("stable-diffusion")
    (folder / "generation_defaults.json").write_text('{"num_inference_steps": 3, "width": 16}')
    decoder = load_decoder("stable-diffusion", folder)
    steps = []
    conditioning = decoder.encode(["x"])
    image = decoder.generate(conditioning, seeds=[0], on_step=lambda step, total, preview: steps.append((step, total)))[0]
    assert image.size == (16, 32)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_size_that_the_weights_do_not_know_is_refused(own_folder):
    folder = own_folder("stable-diffusion")
    (folder / "generation_defaults.json").write_text('{"height": 16, "width": 16, "fixed": ["height", "width"]}')
    decoder = load_decoder("stable-diffusion", folder)
    conditioning = torch.randn(1, *decoder.conditioning_shape)
    assert decoder.generate(conditioning, seeds=[0], num_inference_steps=1, height=16)[0].size == (16, 16)
    with pytest.raises(ValueError, match="height must be 16: these weights make no other; got 64"):
        decoder.generate(conditioning, seeds=[0], height=64)


# Steps and cancellation


@every_kind
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
def test_steps_are_reported_up_to_the_total(kind, scheduler, own_folder):
    folder = own_folder(kind)
    decoder = load_decoder(kind, folder)
    template = decoder.pipeline.scheduler.config
    decoder.pipeline.scheduler = getattr(diffusers, scheduler).from_config(template, skip_prk_steps=True)
    steps = []
    decoder.generate(
        torch.randn(1, *decoder.conditioning_shape),
        seeds=[0],
        num_inference_steps=3,
        on_step=lambda step, total, preview: steps.append((step, total)),
    )
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] and steps[-1][1] in (3, 4)


@every_kind
def test_cancel_stops_within_one_step_and_leaves_the_decoder_usable(kind, folders):
    decoder = load_decoder(kind, folders[kind])
    unet_calls = count_calls(decoder.pipeline.unet)
    conditioning = torch.randn(1, *decoder.conditioning_shape)
    options = {"seeds": [5], "num_inference_steps": 4}
    expected = decoder.generate(conditioning, **options)
    cancel = threading.Event()
    del unet_calls[:]
    with pytest.raises(GenerationCancelled):
        decoder.generate(conditioning, **options, cancel=cancel, on_step=lambda *_: cancel.set())
    assert len(unet_calls) == 1
    with pytest.raises(GenerationCancelled):
        decoder.generate(conditioning, **options, cancel=cancel)
    assert len(unet_calls) == 1
    assert_same(decoder.generate(conditioning, **options), expected)


def test_a_preview_of_each_picture_is_made_when_asked_for(decoders):
    decoder = decoders["stable-diffusion"]
    previews = []
    images = decoder.generate(
        decoder.encode(CAPTIONS[:2]),
        seeds=[1, 2],
        num_inference_steps=2,
        on_step=lambda step, total, preview: previews.append(preview()),
    )
    assert [len(row) for row in previews] == [2, 2]
    assert_same(previews[-1], images)  # these latents are small enough to be shown whole


def test_a_preview_of_a_clip_is_its_middle_frame(decoders):
    decoder, previews = decoders["text-to-video"], []
    clips = decoder.generate(
        decoder.encode(CAPTIONS[:2]),
        seeds=[1, 2],
        num_inference_steps=2,
        on_step=lambda step, total, preview: previews.append(preview()),
    )
    frames = [Image.fromarray(clip.frames[len(clip.frames) // 2]) for clip in clips]
    for preview, frame in zip(previews[-1], frames, strict=True):
        assert np.abs(np.asarray(preview).astype(int) - np.asarray(frame)).max() <= 1


# Loading


@every_kind
def test_the_pipeline_loads_once_on_first_use_and_threads_do_not_mix(kind, folders, monkeypatch):
    pipeline_class = getattr(diffusers, DECODERS[kind].pipeline_class)
    from_pretrained, loads = pipeline_class.from_pretrained, []

    def counted(*args, **kwargs):
        loads.append(1)
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(pipeline_class, "from_pretrained", counted)
    decoder = load_decoder(kind, folders[kind])
    assert not loads
    conditioning = torch.randn(1, *decoder.conditioning_shape)

    def make(seed: int):
        return decoder.generate(conditioning, seeds=[seed], num_inference_steps=2 + seed)[0]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(make, range(4)))
    assert len(loads) == 1
    assert_same(together, [make(seed) for seed in range(4)])


@every_kind
def test_frozen_even_when_loaded_in_inference_mode(kind, folders):
    decoder = load_decoder(kind, folders[kind])
    with torch.inference_mode():
        decoder.encode(["x"])
    modules = [m for m in decoder.pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert len(modules) >= 3
    assert not any(module.training for module in modules)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert not any(parameter.requires_grad or parameter.is_inference() for parameter in parameters)


@pytest.mark.parametrize("width", [768, 1024])
def test_conditioning_shape_follows_the_configuration_alone(width, tmp_path):
    save_tiny_stable_diffusion(tmp_path, width=width)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    assert conditioning_shape("stable-diffusion", tmp_path) == (77, width)
    assert conditioning_shape("text-to-video", tmp_path) == (77, width)


def test_conditioning_shape_of_audioldm_is_one_embedding(folders):
    assert conditioning_shape("audioldm", folders["audioldm"]) == (1, 16)


def test_a_hub_repository_gives_its_shape_without_its_weights(folders, monkeypatch):
    asked = []

    def download(repo_id, filename, revision=None):
        asked.append((repo_id, filename, revision))
        return folders["stable-diffusion"] / filename

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert conditioning_shape("stable-diffusion", "someone/model", "abc") == (77, 32)
    assert asked == [
        ("someone/model", "text_encoder/config.json", "abc"),
        ("someone/model", "tokenizer/tokenizer_config.json", "abc"),
    ]


@every_kind
def test_half_precision_weights_load(kind, folders, decoders, own_folder):
    pipeline = getattr(diffusers, DECODERS[kind].pipeline_class).from_pretrained(folders[kind], dtype=torch.bfloat16)
    folder = own_folder(kind)
    pipeline.save_pretrained(folder)
    decoder = load_decoder(kind, folder)
    embeddings = decoder.encode(CAPTIONS)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, decoders[kind].encode(CAPTIONS), atol=0.05, rtol=0.05)
    assert decoder.generate(embeddings, seeds=[1, 2, 3], num_inference_steps=1)


# The denoising loss


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
    prediction = decoder.pipeline.unet(noisy, timesteps, encoder_hidden_states=conditioning).sample
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    expected = F.mse_loss(prediction, noise if prediction_type == "epsilon" else velocity)
    torch.testing.assert_close(loss, expected)


@every_kind
def test_the_denoising_loss_teaches_the_conditioning_and_nothing_else(kind, decoders):
    decoder = decoders[kind]
    conditioning = decoder.encode(CAPTIONS)
    media = decoder.generate(conditioning, seeds=[1, 2, 3], num_inference_steps=1)
    latents = decoder.encode_media(media)
    assert len(latents) == 3 and latents.isfinite().all()
    conditioning.requires_grad_(True)
    loss = decoder.denoising_loss(conditioning, latents)
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    assert conditioning.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in decoder.pipeline.unet.parameters())


def test_latents_have_the_shape_that_generation_starts_from(decoders):
    picture, sound, clip = (decoders[kind] for kind in SAVE_TINY)
    assert picture.encode_media([Image.new("L", (50, 20))]).shape == (1, 4, 16, 16)
    stereo_rate = Audio(np.zeros(100, np.float32), 8000)
    assert sound.encode_media([stereo_rate], duration=0.3).shape == (1, 4, 19, 8)
    assert clip.encode_media([Video(np.zeros((3, 50, 20, 3), np.uint8), 8)]).shape == (1, 4, 3, 16, 16)


def test_the_spectrogram_is_of_magnitudes_in_natural_logarithms():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None]
    quiet, loud = (log_mel_spectrogram(tone * gain, 16000, 160, 64) for gain in (0.01, 0.1))
    assert quiet.shape == (1, 101, 64)
    peak = loud[0, 50].argmax()
    assert loud[0, 50, peak] - quiet[0, 50, peak] == pytest.approx(np.log(10), abs=1e-3)
    assert log_mel_spectrogram(torch.zeros(1, 16000), 16000, 160, 64).unique().item() == pytest.approx(np.log(1e-5))


# Mistakes


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown decoder kind 'sdxl'.*stable-diffusion, audioldm, text-to-video"):
        load_decoder("sdxl", "anywhere")


def test_a_missing_source_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="'no/where'.*no such folder.*Correct the path"):
        load_decoder("stable-diffusion", "no/where")
    with pytest.raises(OSError, match="'/no/such/folder'.*no such folder"):
        load_decoder("stable-diffusion", "/no/such/folder")


def test_another_kinds_folder_is_refused(folders):
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline.*'text-to-video' is made for a TextToVideo"):
        load_decoder("text-to-video", folders["stable-diffusion"])


def lose_the_part(folder):
    shutil.rmtree(folder / "unet")


def lose_the_weights(folder):
    next((folder / "unet").glob("*.safetensors")).unlink()


def keep_only_a_pickle(folder):
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))


def truncate_the_weights(folder):
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_the_part, "lacks its part 'unet' \\(UNet2DConditionModel\\).*Copy the whole folder"),
        (lose_the_weights, "unet has a configuration but no weights.*safetensors"),
        (keep_only_a_pickle, "unet has its weights as .bin only.*convert"),
        (truncate_the_weights, "Could not load the decoder 'stable-diffusion'.*Restore its files"),
    ],
)
def test_a_damaged_folder_names_the_part_and_the_remedy(damage, message, own_folder):
    folder = own_folder("stable-diffusion")
    decoder = load_decoder("stable-diffusion", folder)
    damage(folder)
    with pytest.raises(OSError, match=f"(?s){message}"):
        decoder.encode(["x"])


def test_a_part_may_lie_in_another_pipelines_folder(own_folder, decoders):
    folder = own_folder("text-to-video")
    shutil.move(folder / "vae", folder.parent / "of_pictures")
    (folder / "shared_components.json").write_text('{"vae": "../of_pictures"}', encoding="utf-8")
    noise = torch.randn(1, *decoders["text-to-video"].conditioning_shape)
    made = [each.generate(noise, seeds=[0]) for each in (load_decoder("text-to-video", folder), decoders["text-to-video"])]
    assert_same(*made)
    shutil.rmtree(folder.parent / "of_pictures")
    with pytest.raises(OSError, match="lacks its part 'vae'.*of_pictures"):
        load_decoder("text-to-video", folder).encode(["x"])
    (folder / "shared_components.json").write_text('{"vea": "../of_pictures"}', encoding="utf-8")
    with pytest.raises(OSError, match="shared_components.json names a part 'vea' .*It has: .*vae"):
        load_decoder("text-to-video", folder).encode(["x"])


@pytest.mark.parametrize(
    ("filename", "content", "message"),
    [
        ("text_encoder/config.json", "{", "text_encoder/config.json is not valid JSON"),
        ("text_encoder/config.json", '{"max_position_embeddings": 77}', "'hidden_size'"),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": 50}', "model_max_length=50.*embeddings=77"),
        ("model_index.json", None, "has no model_index.json"),
        (
            "generation_defaults.json",
            '{"steps": 3}',
            "generation_defaults.json: .*no option 'steps'.*num_inference_steps",
        ),
        ("generation_defaults.json", '{"height": "64"}', "height must be a whole number above 0, got '64'"),
        ("generation_defaults.json", '{"width": 64, "fixed": ["height"]}', r"'fixed' names \['height'\], given no value"),
    ],
)
def test_a_wrong_file_is_named_at_once(filename, content, message, own_folder):
    folder = own_folder("stable-diffusion")
    if content is None:
        (folder / filename).unlink()
    else:
        (folder / filename).write_text(content)
    with pytest.raises((OSError, ValueError), match=message):
        load_decoder("stable-diffusion", folder)


def test_the_safety_checker_is_neither_needed_nor_loaded(own_folder):
    folder = own_folder("stable-diffusion")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_decoder("stable-diffusion", folder).pipeline.safety_checker is None


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("stable-diffusion", {"duration": 3}, "no option 'duration'.*height, width"),
        ("stable-diffusion", {"num_inference_steps": 0}, "num_inference_steps must be a whole number above 0, got 0"),
        ("stable-diffusion", {"seeds": [1, 2]}, "2 seeds for 1 rows"),
        ("stable-diffusion", {"height": 33}, "height.*divisible by 8"),
        ("audioldm", {"duration": 0.001}, "duration=0.001 seconds is too short.*at least 0.016"),
        ("text-to-video", {"num_frames": 1.5}, "num_frames must be a whole number"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kind, arguments, message, decoders):
    conditioning = torch.randn(1, *decoders[kind].conditioning_shape)
    with pytest.raises(ValueError, match=message):
        decoders[kind].generate(conditioning, **{"seeds": [0], **arguments})


def test_conditioning_of_another_decoder_is_refused_with_both_shapes(decoders):
    with pytest.raises(ValueError, match=r"\[N, 77, 32\], got \[1, 77, 768\]"):
        decoders["stable-diffusion"].generate(torch.randn(1, 77, 768), seeds=[0])
    with pytest.raises(ValueError, match=r"\[N, 1, 16\], got \[1, 16\]"):
        decoders["audioldm"].denoising_loss(torch.randn(1, 16), torch.randn(1, 4, 32, 8))
