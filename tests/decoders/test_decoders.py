"""Decoders: conditioning in, media out. Tiny random pipelines of the real classes."""

import logging
import threading

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from media_values import CAPTIONS, assert_different, assert_same, random_conditioning, rows, values
from nextgpt.decoders import Audio, GenerationCancelled, Video, load_decoder
from tiny_decoders import TINY_DECODERS

every_kind = pytest.mark.parametrize("kind", TINY_DECODERS)
pytestmark = pytest.mark.usefixtures("one_thread")  # layers this small lose more to threads than they gain


def stock_pipeline(kind, folders):
    """diffusers' own pipeline of a folder."""
    class_name = load_decoder(kind, folders[kind]).pipeline_class
    return getattr(diffusers, class_name).from_pretrained(folders[kind])


def count_calls(module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# Embeddings in, media out


def stock_encoding(kind, pipeline) -> dict:
    """What the pipeline's own `encode_prompt` gives, by the names of the pipeline's arguments."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    match kind:
        case "stable-diffusion" | "text-to-video":
            made = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
        case "stable-diffusion-xl":
            made = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        case "stable-diffusion-3" | "stable-diffusion-3-spectrograms" | "stable-diffusion-3-clips":
            made = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
        case "stable-audio":
            made = [pipeline.encode_prompt(CAPTIONS, "cpu", False)]
        case "wan":
            made = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=77)
        case "latte":
            made = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        case "audioldm":  # its method is private
            inputs = pipeline.tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt")
            made = [F.normalize(pipeline.text_encoder(**inputs).text_embeds, dim=-1)]
    return {name: tensor for name, tensor in zip(names, made, strict=False) if tensor is not None}


@every_kind
def test_encode_equals_the_pipelines_own_embedding_and_has_the_declared_shapes(kind, folders, decoders):
    with torch.no_grad():
        expected = stock_encoding(kind, stock_pipeline(kind, folders))
    found = decoders[kind].encode(CAPTIONS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert {name: tuple(tensor.shape[1:]) for name, tensor in found.items()} == {
        name: spec.shape for name, spec in decoders[kind].conditioning_spec.items()
    }


@every_kind
def test_captions_that_are_too_long_are_told_of_once_and_not_repeated(kind, folders, caplog):
    decoder, long = load_decoder(kind, str(folders[kind])), "a bird and " * 200
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)  # diffusers does not pass its messages on to the root logger
    try:
        for one, other in decoder.encode([long, long + "a cat"]).values():
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # rows of a batch may round differently
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

    pipeline = stock_pipeline(kind, folders)
    options = {name: decoder.generation_defaults[name] for name in ("num_frames",) if decoder.modality == "video"}
    options |= {"height": 32, "width": 32} if decoder.modality != "audio" else {}
    options |= {"max_sequence_length": 77} if kind == "wan" else {}
    if kind == "stable-diffusion-3-spectrograms":
        options |= {"height": 64, "width": 16, "output_type": "latent"}
    if kind == "stable-diffusion-3-clips":
        options = {"height": 32, "width": 8, "output_type": "latent"}  # four frames of 8 pixels, one below the other
    if kind == "latte":
        options |= {"video_length": options.pop("num_frames"), "output_type": "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    theirs = pipeline(CAPTIONS, num_inference_steps=3, guidance_scale=6.0, generator=generators, **options)
    if decoder.modality == "image":
        expected = theirs.images
    elif kind == "stable-diffusion-3-spectrograms":
        with torch.no_grad():
            spectrograms = pipeline.vae.decode(theirs.images / pipeline.vae.config.scaling_factor + 0.1).sample[:, 0]
        expected = [Audio(waveform.numpy(), 0) for waveform in decoder.vocoder(spectrograms)]
    elif kind == "stable-diffusion-3-clips":
        expected = []
        for strip in theirs.images:
            frames = torch.stack(strip.split(strip.shape[1] // 4, dim=1))  # [T, C, h, w]
            with torch.no_grad():
                pixels = pipeline.vae.decode(frames / pipeline.vae.config.scaling_factor + 0.1).sample / 2 + 0.5
            expected.append(Video((pixels.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().byte().numpy(), 4))
    elif decoder.modality == "audio":
        stereo = [torch.as_tensor(audio) for audio in theirs.audios]
        expected = [Audio((audio.mean(0) if audio.ndim == 2 else audio).numpy(), 0) for audio in stereo]
    else:
        expected = [Video((frames * 255).round().astype(np.uint8), 4) for frames in theirs.frames]
    assert_same(mine, expected)


@every_kind
def test_a_batch_equals_its_items_made_alone(kind, decoders):
    decoder = decoders[kind]
    conditioning = decoder.encode(CAPTIONS)
    batch = decoder.generate(conditioning, seeds=[7, 8, 7], num_inference_steps=2)
    alone = [
        decoder.generate(rows(conditioning, [i]), seeds=[seed], num_inference_steps=2)[0] for i, seed in enumerate([7, 8, 7])
    ]
    assert_same(batch, alone)


@every_kind
def test_the_seed_and_every_tensor_of_the_conditioning_decide(kind, decoders):
    decoder = decoders[kind]
    one, other = random_conditioning(decoder), random_conditioning(decoder, seed=1)

    def make(conditioning, seed=1):
        return decoder.generate(conditioning, seeds=[seed], num_inference_steps=2, guidance_scale=30.0)[0]

    first = make(one)
    np.testing.assert_array_equal(values(first), values(make(one)))
    assert_different(first, make(one, seed=2))
    for name in one:
        assert_different(first, make(one | {name: other[name]}))


@every_kind
def test_the_text_encoders_see_only_the_empty_prompt_at_inference(kind, folders, monkeypatch):
    stock = stock_pipeline(kind, folders)
    encoders = {name: each for name, each in stock.components.items() if name.startswith("text_encoder")}
    tokenizers = [each for name, each in stock.components.items() if name.startswith("tokenizer")]
    calls, inside = [], []

    def only_the_empty_prompt(forward):
        def wrapped(self, input_ids, *args, **kwargs):
            length = input_ids.shape[1]
            empty = [each("", padding="max_length", max_length=length).input_ids for each in tokenizers]
            assert input_ids.tolist()[0] in empty, "the text encoder was called for a prompt"
            calls.extend([] if inside else [1])  # one CLIP stands inside another
            inside.append(1)
            try:
                return forward(self, input_ids, *args, **kwargs)
            finally:
                inside.pop()

        return wrapped

    for encoder_class in {type(each) for each in encoders.values()}:
        monkeypatch.setattr(encoder_class, "forward", only_the_empty_prompt(encoder_class.forward))
    decoder = load_decoder(kind, folders[kind])
    conditioning = random_conditioning(decoder, 2)
    for _ in range(2):
        decoder.generate(conditioning, seeds=[1, 2], num_inference_steps=1)
    assert len(calls) == (0 if kind == "stable-audio" else len(encoders))  # once each: they are cached
    with pytest.raises(AssertionError, match="called for a prompt"):
        decoder.encode(["a banana"])


def test_guidance_of_xl_goes_against_what_its_folder_says(decoders, own_folder):
    folder = own_folder("stable-diffusion-xl")
    index = folder / "model_index.json"
    index.write_text(
        index.read_text().replace('"force_zeros_for_empty_prompt": true', '"force_zeros_for_empty_prompt": false')
    )
    noise = random_conditioning(decoders["stable-diffusion-xl"])
    zeros, prompt = decoders["stable-diffusion-xl"], load_decoder("stable-diffusion-xl", folder)
    made = [each.generate(noise, seeds=[0], num_inference_steps=2, guidance_scale=30.0)[0] for each in (zeros, prompt)]
    assert_different(*made)


def test_the_autoencoder_of_xl_stays_in_full_precision(folders, decoders):
    """In half precision the published one overflows: pictures and previews are black."""
    half = load_decoder("stable-diffusion-xl", folders["stable-diffusion-xl"], dtype=torch.float16)
    conditioning, previews = half.encode(CAPTIONS[:1]), []
    options = {"seeds": [0], "num_inference_steps": 1, "on_step": lambda step, total, preview: previews.extend(preview())}
    [made] = half.generate(conditioning, **options)
    assert half.pipeline.unet.dtype == torch.float16
    assert half.pipeline.vae.dtype == half.encode_media([made]).dtype == torch.float32
    assert_same([made], previews)


def test_the_autoencoder_of_wan_stays_in_full_precision(folders):
    half = load_decoder("wan", folders["wan"], dtype=torch.bfloat16)
    [made] = half.generate(half.encode(CAPTIONS[:1]), seeds=[0], num_inference_steps=1)
    assert (half.pipeline.transformer.dtype, half.pipeline.vae.dtype) == (torch.bfloat16, torch.float32)
    assert half.denoising_loss(half.encode(CAPTIONS[:1]), half.encode_media([made])).isfinite()


@pytest.mark.parametrize("kind", ["stable-diffusion-3", "stable-audio"])
def test_half_precision_makes_media_and_losses(kind, folders):
    half = load_decoder(kind, folders[kind], dtype=torch.bfloat16)
    conditioning = half.encode(CAPTIONS[:1])
    made = half.generate(conditioning, seeds=[0], num_inference_steps=1)
    assert half.denoising_loss(conditioning, half.encode_media(made)).isfinite()


# Steps and cancellation


@pytest.mark.parametrize("kind", ["stable-diffusion", "stable-diffusion-xl", "audioldm", "text-to-video"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
def test_steps_are_reported_up_to_the_total(kind, scheduler, own_folder):
    folder = own_folder(kind)
    decoder = load_decoder(kind, folder)
    template = decoder.pipeline.scheduler.config
    decoder.pipeline.scheduler = getattr(diffusers, scheduler).from_config(template, skip_prk_steps=True)
    steps = []
    decoder.generate(
        random_conditioning(decoder),
        seeds=[0],
        num_inference_steps=3,
        on_step=lambda step, total, preview: steps.append((step, total)),
    )
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] and steps[-1][1] in (3, 4)


@pytest.mark.parametrize("kind", ["stable-diffusion-3", "stable-audio", "wan"])
def test_steps_of_newer_schedulers_are_reported_up_to_the_total(kind, decoders):
    steps = []
    options = {"seeds": [0], "num_inference_steps": 3}
    decoders[kind].generate(
        random_conditioning(decoders[kind]), **options, on_step=lambda step, total, preview: steps.append((step, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]


@every_kind
def test_cancel_stops_within_one_step_and_leaves_the_decoder_usable(kind, folders):
    decoder = load_decoder(kind, folders[kind])
    calls = count_calls(getattr(decoder.pipeline, decoder.denoiser))
    conditioning = random_conditioning(decoder)
    options = {"seeds": [5], "num_inference_steps": 4}
    expected = decoder.generate(conditioning, **options)
    a_step = len(calls) // 4
    cancel = threading.Event()
    del calls[:]
    with pytest.raises(GenerationCancelled):
        decoder.generate(conditioning, **options, cancel=cancel, on_step=lambda *_: cancel.set())
    assert len(calls) == a_step
    with pytest.raises(GenerationCancelled):
        decoder.generate(conditioning, **options, cancel=cancel)
    assert len(calls) == a_step
    assert_same(decoder.generate(conditioning, **options), expected)


@pytest.mark.parametrize("kind", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"])
def test_a_preview_of_each_picture_is_made_when_asked_for(kind, decoders):
    decoder = decoders[kind]
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
