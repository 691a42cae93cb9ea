"""Loading a decoder: when, from where, and what is said of damaged or foreign folders."""

import importlib.util
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch

from media_values import CAPTIONS, assert_same, random_conditioning
from nextgpt.decoders import DECODERS, load_decoder
from tiny_decoders import TINY_DECODERS

every_kind = pytest.mark.parametrize("kind", TINY_DECODERS)
pytestmark = pytest.mark.usefixtures("one_thread")  # layers this small lose more to threads than they gain


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
    conditioning = random_conditioning(decoder)

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


@every_kind
def test_half_precision_weights_load(kind, folders, decoders, own_folder):
    pipeline = getattr(diffusers, DECODERS[kind].pipeline_class).from_pretrained(folders[kind], dtype=torch.bfloat16)
    folder = own_folder(kind)
    pipeline.save_pretrained(folder)
    decoder = load_decoder(kind, folder)
    embeddings = decoder.encode(CAPTIONS)
    assert {tensor.dtype for tensor in embeddings.values()} == {torch.float32}
    torch.testing.assert_close(embeddings, decoders[kind].encode(CAPTIONS), atol=0.05, rtol=0.05)
    assert decoder.generate(embeddings, seeds=[1, 2, 3], num_inference_steps=1)


# Mistakes


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown decoder kind 'sdxl'.*stable-diffusion, stable-diffusion-xl, .*audioldm"):
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


def test_text_encoders_and_tokenizers_may_lie_in_another_pipelines_folder(own_folder, decoders):
    folder = own_folder("stable-diffusion-3")
    parts = ("text_encoder", "tokenizer", "text_encoder_3", "tokenizer_3")
    for part in parts:
        (folder.parent / "shared").mkdir(exist_ok=True)
        shutil.move(folder / part, folder.parent / "shared" / part)
    (folder / "shared_components.json").write_text(json.dumps({part: f"../shared/{part}" for part in parts}))
    decoder = load_decoder("stable-diffusion-3", folder)
    assert decoder.conditioning_spec == decoders["stable-diffusion-3"].conditioning_spec
    torch.testing.assert_close(decoder.encode(CAPTIONS), decoders["stable-diffusion-3"].encode(CAPTIONS))


def test_a_part_may_lie_in_another_pipelines_folder(own_folder, decoders):
    folder = own_folder("text-to-video")
    shutil.move(folder / "vae", folder.parent / "of_pictures")
    (folder / "shared_components.json").write_text('{"vae": "../of_pictures"}', encoding="utf-8")
    noise = random_conditioning(decoders["text-to-video"])
    mine, own = load_decoder("text-to-video", folder), decoders["text-to-video"]
    assert_same(*(each.generate(noise, seeds=[0], num_inference_steps=2) for each in (mine, own)))
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


def test_a_scheduler_that_needs_an_absent_package_names_it(own_folder):
    """Stable Audio's published folder names it; diffusers holds a stand-in for it where torchsde is not installed."""
    if importlib.util.find_spec("torchsde"):
        pytest.skip("torchsde is installed")
    folder = own_folder("stable-audio")
    for file in (folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"):
        file.write_text(file.read_text().replace("EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"))
    decoder = load_decoder("stable-audio", folder)
    decoder.check_trainable()
    with pytest.raises(OSError, match="'stable-audio' from .*requires the torchsde library.*Install the package") as caught:
        decoder.encode(["x"])
    assert "\n" not in str(caught.value)


def test_decoders_may_load_at_the_same_time(folders):
    decoders = [load_decoder(kind, folders[kind]) for kind in ("stable-diffusion", "audioldm", "text-to-video", "latte") * 2]
    with ThreadPoolExecutor(len(decoders)) as pool:
        for pipeline in pool.map(lambda decoder: decoder.pipeline, decoders):
            modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
            assert not any(parameter.is_meta for module in modules for parameter in module.parameters())
