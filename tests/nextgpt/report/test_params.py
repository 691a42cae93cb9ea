"""The full-size model's parameters, counted on the meta device, against the table of the design.

The numbers are those of NExT-GPT (https://arxiv.org/abs/2309.05519) and of its published parts; no weights are needed.
"""

import shutil

import pytest

from nextgpt.decoders.sources import SHARED_FILE
from nextgpt.report.params import PartCount, count_parameters
from tiny_decoders import save_tiny_stable_audio, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_config


@pytest.fixture(scope="module")
def table():
    return count_parameters("7b")


TRAINED = {
    "input projection": 4_198_400,
    "LoRA": 33_554_432,
    "signal rows": 2 * 36 * 4096,
    "image output projection": 31_958_784,
    "audio output projection": 31_788_544,
    "video output projection": 32_090_112,
}
FROZEN = {  # billions
    "encoder": 1.2,
    "LLM": 6.74,
    "image decoder": 1.07,
    "audio decoder": 0.975,
    "video decoder": 1.84,
}


def test_the_trained_parts_have_exactly_the_parameters_of_the_design(table):
    assert {part.name: part.parameters for part in table.parts if part.trained} == TRAINED


def test_the_frozen_parts_have_their_published_size(table):
    found = {part.name: part.parameters / 1e9 for part in table.parts if not part.trained}
    assert found == pytest.approx(FROZEN, rel=0.01)


def test_about_one_percent_is_trained(table):
    assert table.trained == sum(TRAINED.values())
    assert 0.010 < table.trained_share < 0.012


def test_a_breakdown_adds_up_to_its_part(table):
    for part in table.parts:
        assert not part.breakdown or sum(part.breakdown.values()) == part.parameters


def test_every_frozen_part_has_a_licence_and_the_non_commercial_ones_are_told(table):
    assert all(part.license for part in table.parts if not part.trained)
    restricted = {part.name for part in table.parts if part.is_non_commercial}
    assert restricted == {"encoder", "audio decoder", "video decoder"}


@pytest.mark.parametrize(
    ("license", "restricted"),
    [("CC BY-NC 4.0", True), ("CC BY-NC-SA 4.0", True), ("non-commercial research", True), ("Apache-2.0", False)],
)
def test_a_licence_is_read_for_what_it_forbids(license, restricted):
    assert PartCount("encoder", "somewhere", 1, trained=False, license=license).is_non_commercial is restricted


def test_nano_is_counted_and_nothing_is_said_of_it(caplog):
    parts = {part.name: part for part in count_parameters("nano").parts}
    assert all(part.parameters > 0 for part in parts.values()) and "vae" in parts["image decoder"].breakdown
    assert not caplog.records, "an autoencoder names what its class does not take"


def test_what_two_decoders_share_is_counted_once(tmp_path):
    save_tiny_stable_diffusion(tmp_path / "image_decoder")
    clips = save_tiny_text_to_video(tmp_path / "clip_decoder")
    shutil.rmtree(clips / "vae")
    (clips / SHARED_FILE).write_text('{"vae": "../image_decoder/vae"}')
    decoders = {
        "image": {"kind": "stable-diffusion", "source": str(tmp_path / "image_decoder")},
        "video": {"kind": "text-to-video", "source": str(clips)},
    }
    tiny_config(tmp_path, decoders=decoders).save_pretrained(tmp_path / "model")
    parts = {part.name: part for part in count_parameters(tmp_path / "model").parts}
    assert "vae" in parts["image decoder"].breakdown and "vae" not in parts["video decoder"].breakdown
    assert parts["video decoder"].parameters == sum(parts["video decoder"].breakdown.values()) > 0


def test_models_that_are_made_for_one_pipeline_are_counted(tmp_path):
    save_tiny_stable_audio(tmp_path / "audio_decoder")
    decoders = {"audio": {"kind": "stable-audio", "source": str(tmp_path / "audio_decoder")}}
    tiny_config(tmp_path, decoders=decoders).save_pretrained(tmp_path / "model")
    [decoder] = [part for part in count_parameters(tmp_path / "model").parts if part.name == "audio decoder"]
    assert set(decoder.breakdown) == {"text_encoder", "projection_model", "transformer", "vae"}
