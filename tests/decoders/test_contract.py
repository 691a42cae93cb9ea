"""The contract of decoders: what they declare from configuration files alone, and what they refuse."""

import json

import numpy as np
import pytest
import torch

from media_values import random_conditioning
from nextgpt.decoders import DECODERS, Decoder, Size, TensorSpec, conditioning_spec, load_decoder, register_decoder
from nextgpt.train.data.hashes import FileHashes
from tiny_decoders import TINY_DECODERS, save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_stable_diffusion_3

every_kind = pytest.mark.parametrize("kind", TINY_DECODERS)
pytestmark = pytest.mark.usefixtures("one_thread")  # layers this small lose more to threads than they gain


# Conditioning


@pytest.mark.parametrize("width", [768, 1024])
def test_conditioning_spec_follows_the_configuration_alone(width, tmp_path):
    save_tiny_stable_diffusion(tmp_path, width=width)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    assert conditioning_spec("stable-diffusion", tmp_path) == {"prompt_embeds": TensorSpec((77, width))}
    assert conditioning_spec("text-to-video", tmp_path) == {"prompt_embeds": TensorSpec((77, width))}


def test_conditioning_spec_of_audioldm_is_one_vector(folders):
    assert conditioning_spec("audioldm", folders["audioldm"]) == {"prompt_embeds": TensorSpec((16,))}


def test_a_hub_repository_gives_its_shapes_without_its_weights(folders, monkeypatch):
    asked = []

    def download(repo_id, filename, revision=None):
        asked.append((repo_id, filename, revision))
        return folders["stable-diffusion"] / filename

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert conditioning_spec("stable-diffusion", "someone/model", "abc") == {"prompt_embeds": TensorSpec((77, 32))}
    assert asked == [
        ("someone/model", "text_encoder/config.json", "abc"),
        ("someone/model", "tokenizer/tokenizer_config.json", "abc"),
    ]


@every_kind
def test_no_weights_are_needed_to_know_the_conditioning_and_the_sizes(kind, own_folder, decoders):
    folder = own_folder(kind)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    decoder = load_decoder(kind, folder)
    assert conditioning_spec(kind, folder) == decoder.conditioning_spec == decoders[kind].conditioning_spec
    assert decoder.sizes == decoders[kind].sizes
    assert all(spec.is_projected for spec in decoder.conditioning_spec.values())


def test_sd3_is_read_with_one_two_or_three_text_encoders(tmp_path):
    lengths = {1: (77, 24), 2: (333, 24), 3: (333, 24)}
    for count, shape in lengths.items():
        folder = save_tiny_stable_diffusion_3(tmp_path / str(count), encoders=count)
        decoder = load_decoder("stable-diffusion-3", folder)
        assert decoder.conditioning_spec["prompt_embeds"] == TensorSpec(shape)
        made = decoder.encode(["a banana", "a banana " * 50])
        assert {name: tuple(each.shape[1:]) for name, each in made.items()} == {
            name: spec.shape for name, spec in decoder.conditioning_spec.items()
        }
        assert not torch.equal(made["pooled_prompt_embeds"][0], made["pooled_prompt_embeds"][1])
        assert decoder.generate(made, seeds=[0, 1], num_inference_steps=1)


def test_an_sd3_may_take_the_text_embedding_alone(tmp_path):
    folder = save_tiny_stable_diffusion_3(tmp_path, encoders=1, pooled=12, width=12)
    decoder = load_decoder("stable-diffusion-3", folder)
    assert decoder.conditioning_spec["prompt_embeds"] == TensorSpec((1, 12))
    made = decoder.encode(["a banana", "a bird"])
    assert torch.equal(made["prompt_embeds"][:, 0], made["pooled_prompt_embeds"])
    assert decoder.generate(made, seeds=[0, 1], num_inference_steps=1, guidance_scale=3.0)


def test_text_encoders_of_another_sd3_are_refused(own_folder):
    folder = own_folder("stable-diffusion-3")
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"pooled_projection_dim": 20', '"pooled_projection_dim": 21'))
    with pytest.raises(ValueError, match="pooled embedding of 20, its transformer takes 24 and 21"):
        load_decoder("stable-diffusion-3", folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"CLIPTextModelWithProjection"', "null"))
    with pytest.raises(ValueError, match="its text encoders are text_encoder_3; expected"):
        load_decoder("stable-diffusion-3", folder)


def test_a_stable_audio_whose_projection_changes_the_text_is_refused(own_folder):
    folder = own_folder("stable-audio")
    config = folder / "projection_model" / "config.json"
    config.write_text(config.read_text().replace('"conditioning_dim": 16', '"conditioning_dim": 24'))
    with pytest.raises(ValueError, match="projection_model takes states of 16 to 24; expected 16 to 16"):
        load_decoder("stable-audio", folder)


# Files


@every_kind
def test_every_text_encoder_and_autoencoder_file_counts_for_the_features_of_training(kind, own_folder, tmp_path):
    folder = own_folder(kind)
    decoder, hashes = load_decoder(kind, folder), FileHashes(tmp_path / "hashes")

    def fingerprints():
        patterns = (decoder.files_of(decoder.text_encoder_files), decoder.files_of(decoder.autoencoder_files))
        return [hashes.fingerprint(str(folder), None, each) for each in patterns]

    texts, pictures = fingerprints()
    for part in sorted(folder.iterdir()):
        if part.is_dir() and part.name != "scheduler":
            before = fingerprints()
            file = next(iter(sorted([*part.glob("*.safetensors"), *part.glob("*.json")])))
            file.write_bytes(file.read_bytes() + b" ")
            changed = [one != other for one, other in zip(before, fingerprints(), strict=True)]
            reads_text = part.name.startswith(("text_encoder", "tokenizer", "projection_model"))
            assert changed[0] == reads_text, part.name
            if part.name == "vae":
                assert changed[1]
    assert texts != fingerprints()[0] and pictures != fingerprints()[1]


def test_files_that_lie_in_another_pipelines_folder_count_too(own_folder, tmp_path):
    folder = own_folder("text-to-video")
    shared = folder.parent / "shared"
    (folder / "vae").rename(shared)
    (folder / "shared_components.json").write_text('{"vae": "../shared"}', encoding="utf-8")
    decoder, hashes = load_decoder("text-to-video", folder), FileHashes(tmp_path / "hashes")
    before = hashes.fingerprint(str(folder), None, decoder.files_of(decoder.autoencoder_files))
    config = shared / "config.json"
    config.write_text(config.read_text() + " ")
    assert hashes.fingerprint(str(folder), None, decoder.files_of(decoder.autoencoder_files)) != before


# Sizes


def test_a_key_that_an_older_file_lacks_has_the_default_of_its_class(own_folder, decoders):
    """Wan's published autoencoder does not name its factors."""
    folder = own_folder("wan")
    config = json.loads((folder / "vae" / "config.json").read_text())
    for key in ("scale_factor_temporal", "scale_factor_spatial"):
        del config[key]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert load_decoder("wan", folder).sizes == decoders["wan"].sizes
    folder = folder.with_name("audio")
    save_tiny_audioldm(folder)
    (folder / "vocoder" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="vocoder/config.json does not say its 'upsample_rates'"):
        load_decoder("audioldm", folder).check_options({"duration": 1.0})


def test_sizes_are_what_the_pipeline_can_make(decoders):
    assert decoders["stable-diffusion"].sizes["height"] == Size(least=8, step=8, default=32)
    assert decoders["stable-diffusion-3"].sizes["width"] == Size(least=4, step=4, most=64, default=32)
    assert decoders["wan"].sizes["num_frames"] == Size(least=1, step=4, most=125)
    assert decoders["latte"].sizes["num_frames"] == Size.only(4)
    assert decoders["stable-diffusion-3-clips"].sizes["num_frames"] == Size(least=1, step=1, most=8, default=8)
    assert decoders["stable-audio"].sizes["duration"] == Size(least=0.016, most=0.512, default=0.512)
    assert str(decoders["wan"].sizes["num_frames"]) == "1 more than a multiple of 4, from 1 to 125"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stable-diffusion-3", {"height": 64, "width": 4}),
        ("wan", {"height": 16, "width": 48, "num_frames": 9}),
        ("stable-audio", {"duration": 0.016}),
        ("stable-audio", {"duration": 0.3}),
        ("audioldm", {"duration": 0.016}),
    ],
)
def test_the_sizes_at_the_edge_are_made(kind, options, decoders):
    [made] = decoders[kind].generate(random_conditioning(decoders[kind]), seeds=[0], num_inference_steps=1, **options)
    match decoders[kind].modality:
        case "image":
            assert made.size == (options["width"], options["height"])
        case "video":
            assert made.frames.shape == (options["num_frames"], options["height"], options["width"], 3)
        case "audio":
            assert len(made.array) == int(options["duration"] * made.sampling_rate)


def test_size_options_set_the_size(decoders):
    picture, sound, clip = (decoders[kind] for kind in ("stable-diffusion", "audioldm", "text-to-video"))
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
    assert decoder.sizes["height"].fits(16) and not decoder.sizes["height"].fits(32)
    conditioning = decoder.encode(["x"])
    assert decoder.generate(conditioning, seeds=[0], num_inference_steps=1, height=16)[0].size == (16, 16)
    with pytest.raises(ValueError, match="height must be 16: these weights make no other, got 64"):
        decoder.generate(conditioning, seeds=[0], height=64)


def test_a_default_that_cannot_be_made_is_refused_when_sizes_are_asked_for(own_folder):
    folder = own_folder("stable-diffusion-3")
    (folder / "generation_defaults.json").write_text('{"width": 20}')
    assert load_decoder("stable-diffusion-3", folder).sizes["width"].fits(20)
    (folder / "generation_defaults.json").write_text('{"width": 21}')
    decoder = load_decoder("stable-diffusion-3", folder)
    with pytest.raises(ValueError, match="as a default, width must be a multiple of 4, from 4 to 64, got 21"):
        decoder.check_options({})


# Mistakes


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("stable-diffusion", {"duration": 3}, "no option 'duration'.*height, width"),
        ("stable-diffusion", {"num_inference_steps": 0}, "num_inference_steps must be a whole number above 0, got 0"),
        ("stable-diffusion", {"seeds": [1, 2]}, "2 seeds for 1 rows"),
        ("stable-diffusion", {"height": 33}, "height must be a multiple of 8, at least 8, got 33"),
        ("audioldm", {"duration": 0.001}, "duration must be at least 0.016, got 0.001"),
        ("text-to-video", {"num_frames": 1.5}, "num_frames must be a whole number"),
        ("stable-diffusion-3", {"height": 30}, "height must be a multiple of 4, from 4 to 64, got 30"),
        ("stable-diffusion-3", {"width": 68}, "width must be a multiple of 4, from 4 to 64, got 68"),
        ("wan", {"num_frames": 6}, "num_frames must be 1 more than a multiple of 4, from 1 to 125, got 6"),
        ("stable-audio", {"duration": 48}, "duration must be from 0.016 to 0.512, got 48"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kind, arguments, message, decoders):
    conditioning = random_conditioning(decoders[kind])
    with pytest.raises(ValueError, match=message):
        decoders[kind].generate(conditioning, **{"seeds": [0], **arguments})


@pytest.mark.parametrize(
    ("kind", "conditioning", "message"),
    [
        (
            "stable-diffusion",
            {"prompt_embeds": torch.randn(1, 77, 768)},
            r"'prompt_embeds' of shape \[N, 77, 32\], got \[1, 77, 768\]",
        ),
        ("audioldm", {"prompt_embeds": torch.randn(1, 1, 16)}, r"'prompt_embeds' of shape \[N, 16\], got \[1, 1, 16\]"),
        ("audioldm", {}, r"'audioldm' at .* takes 'prompt_embeds', which is missing: it takes prompt_embeds \[N, 16\]"),
        (
            "audioldm",
            {"prompt_embeds": torch.randn(1, 16), "pooled_prompt_embeds": torch.randn(1, 16)},
            "takes no 'pooled_prompt_embeds': it takes prompt_embeds",
        ),
        (
            "stable-diffusion-xl",
            {"prompt_embeds": torch.randn(1, 77, 24)},
            r"'pooled_prompt_embeds', which is missing: .*prompt_embeds \[N, 77, 24\], pooled_prompt_embeds \[N, 12\]",
        ),
        (
            "stable-diffusion-xl",
            {"prompt_embeds": torch.randn(2, 77, 24), "pooled_prompt_embeds": torch.randn(1, 12)},
            "2 rows of 'prompt_embeds' and 1 of 'pooled_prompt_embeds'",
        ),
        ("audioldm", torch.randn(1, 16), "takes a dictionary of named tensors .*got a Tensor"),
    ],
)
def test_conditioning_that_does_not_fit_is_named_in_one_line(kind, conditioning, message, decoders):
    for use in (
        lambda: decoders[kind].generate(conditioning, seeds=[0]),
        lambda: decoders[kind].denoising_loss(conditioning, torch.randn(1, 4, 16, 16)),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_kind_that_is_taken_is_refused_in_one_line():
    class Mine(Decoder):
        kind = "audioldm"

    with pytest.raises(ValueError, match=r"kind 'audioldm' of .*Mine is taken by .*AudioLDMDecoder\. Choose") as caught:
        register_decoder(Mine)
    assert "\n" not in str(caught.value)
    assert register_decoder(DECODERS["audioldm"]) is DECODERS["audioldm"]  # a module that is imported twice
