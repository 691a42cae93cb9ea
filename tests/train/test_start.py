"""What a run starts from: a saved model, with other decoders where the settings give them."""

from pathlib import Path

import pytest
import torch

from nextgpt import NextGPTPipeline
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.cache import _Worker
from nextgpt.train.stages import run_stage
from nextgpt.train.start import load_for_training, read_model_config
from tiny_decoders import save_tiny_stable_diffusion_xl
from tiny_training import checkpoint_tensors, config_for, log_of

ASK = [{"role": "user", "content": "draw red"}]


@pytest.fixture(scope="module")
def first(world, tmp_path_factory) -> Path:
    """A trained model, which draws with Stable Diffusion."""
    return run_stage("instruct", config_for(world, "instruct", tmp_path_factory.mktemp("first"), max_steps=2))


def config_of(model: Path, decoders: dict) -> NextGPTConfig:
    """The configuration of a run that starts from a model with these decoders."""
    return read_model_config(TrainingConfig(model=str(model), data=["d"], output_dir="o", decoders=decoders))[1]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> dict[str, str]:
    """Another decoder of pictures, with two tensors of conditioning."""
    folder = save_tiny_stable_diffusion_xl(tmp_path_factory.mktemp("xl") / "image_decoder")
    return {"kind": "stable-diffusion-xl", "source": str(folder)}


def test_another_decoder_starts_with_a_new_projection_and_all_else_goes_on(world, first, other, tmp_path) -> None:
    config = config_for(world, "instruct", tmp_path, model=str(first), decoders={"image": other})
    before, now = checkpoint_tensors(first), load_for_training(config)[0].trained_state()
    drawing = {name for name in now if name.startswith("output_projections.image.")}
    assert any("pooled_prompt_embeds" in name for name in drawing)
    assert all(torch.equal(before[name], tensor) for name, tensor in now.items() if name not in drawing)


def test_it_is_trained_saved_and_drawn_with(world, first, other, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(Path(other["source"]).parent)
    here = {"kind": other["kind"], "source": "image_decoder"}  # as one types it
    changes = {"model": str(first), "decoders": {"image": here}, "trains": ["output_projections"], "max_steps": 6}
    second = run_stage("align_decoders", config_for(world, "align_decoders", tmp_path, **changes))
    assert log_of(second)[-1]["loss/conditioning/image"] < log_of(second)[0]["loss/conditioning/image"]
    pipeline = NextGPTPipeline.from_pretrained(second)
    assert pipeline.model.config.decoders["image"]["kind"] == "stable-diffusion-xl"
    assert len(pipeline(ASK, require={"image": 1}, image={"num_inference_steps": 1}).images) == 1


def test_a_model_can_go_on_with_the_decoder_that_it_has(world, first, tmp_path) -> None:
    own = NextGPTForConditionalGeneration.from_pretrained(first).config
    same = {"image": {"source": own.location("image")}}
    assert config_of(first, same).decoders == own.decoders  # its licence and its fingerprint too
    now = load_for_training(config_for(world, "instruct", tmp_path, model=str(first), decoders=same))[0].trained_state()
    assert all(torch.equal(tensor, now[name]) for name, tensor in checkpoint_tensors(first).items() if name in now)


@pytest.mark.parametrize(
    ("decoders", "reason"),
    [
        ({"video": {"kind": "latte", "source": "x"}}, "decoders names video, and this model makes image"),
        ({"image": {"kind": "latte", "source": "x"}}, "decoders: the image decoder is a 'latte', which makes video"),
        ({"image": {"source": "no/such-folder"}}, "decoders: No .* for the decoder 'no/such-folder': no such fol"),
    ],
)
def test_what_is_no_decoder_of_the_model_is_named(world, first, tmp_path, decoders, reason) -> None:
    with pytest.raises(UserInputError, match=reason):
        load_for_training(config_for(world, "instruct", tmp_path, model=str(first), decoders=decoders))


def test_a_run_that_would_leave_the_new_projection_untrained_is_refused(world, first, other, tmp_path) -> None:
    changes = {"model": str(first), "decoders": {"image": other}, "trains": ["adapter"]}
    with pytest.raises(UserInputError, match="other decoders, whose output projections instruct would leave untrained"):
        run_stage("instruct", config_for(world, "instruct", tmp_path, **changes))


@pytest.mark.parametrize("decoders", ["stable-diffusion-xl", {"image": "folder"}, {"image": {"kind": "latte"}}])
def test_decoders_of_another_shape_are_refused(decoders) -> None:
    values = {"model": "m", "data": ["d"], "output_dir": "o", "decoders": decoders}
    with pytest.raises(UserInputError, match=r"decoders is .*, expected \{image: \{kind: stable-diffusion-xl, source: FOLD"):
        TrainingConfig.from_dict(values)
    values["decoders"] = {"image": {"source": "x", "kin": "latte"}}
    with pytest.raises(UserInputError, match="decoders: image: unknown key 'kin'; did you mean 'kind'"):
        TrainingConfig.from_dict(values)


def test_a_worker_of_a_cluster_computes_with_the_decoders_of_the_run(world, first, other, tmp_path) -> None:
    config = config_for(world, "instruct", tmp_path, model=str(first), decoders={"image": other})
    computed = _Worker(config, "captions", "image", "Encoding")({"batch": {b"1": "a red square"}})["computed"]
    assert "pooled_prompt_embeds" in computed["a red square"]
