"""A kind of media from outside, its encoder and its decoder: trained with, saved, loaded and answered with.

Everything is brought as a user's program would bring it, through the public registrations (`tests/toys`).
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nextgpt import Modality, NextGPTConfig, NextGPTPipeline, register_decoder, register_encoder, register_modality
from nextgpt.__main__ import main
from nextgpt.decoders import DECODERS, Decoder, TensorSpec, load_decoder
from nextgpt.encoders import Encoder
from nextgpt.encoders.loading import ENCODERS
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.events import MediaDone
from nextgpt.media import guess_modality, load_media
from nextgpt.modalities import MODALITIES
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.report.doctor import examine
from nextgpt.report.params import count_parameters
from nextgpt.signals import SignalVocabulary
from nextgpt.train.data.cache import cache_features
from nextgpt.train.data.check import check_files
from nextgpt.train.data.convert import convert_files
from nextgpt.train.stages import run_stage
from tiny_models import save_tiny_language_model
from tiny_training import checkpoint_tensors, config_for, log_of, make_responsive, settings, write_lines
from toys.curve import CURVE, Curve, save_curve
from toys.curve_decoder import ROWS, WIDTH, CurveDecoder, save_curve_decoder
from toys.curve_encoder import CurveEncoder, CurveEncoderConfig, CurvePreprocessor
from toys.toy_decoder import save_toy_decoder

KINDS = {"high": 1.0, "low": -1.0}
SLOPES = {"rising": 1.0, "falling": -1.0}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """What a program that brings the toys calls once; other tests know nothing of them."""
    register_modality(CURVE)
    register_encoder(CurveEncoder)
    register_decoder(CurveDecoder)
    yield
    for table, name in ((MODALITIES, "curve"), (ENCODERS, "toy-curve-encoder"), (DECODERS, "toy-curve")):
        del table[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that takes curves and makes pictures and curves, not trained yet; curves; data in both directions."""
    folder = tmp_path_factory.mktemp("a world of curves")
    parts = folder / "parts"
    save_tiny_language_model(parts / "language_model")
    make_responsive(parts / "language_model" / "model.safetensors")
    torch.manual_seed(0)
    CurveEncoder(CurveEncoderConfig()).save_pretrained(parts / "encoder")
    save_curve_decoder(parts / "curve_decoder")
    save_toy_decoder(parts / "image_decoder")
    NextGPTConfig(
        language_model={"source": str(parts / "language_model")},
        encoder={"source": str(parts / "encoder")},
        decoders={
            "curve": {"kind": "toy-curve", "source": str(parts / "curve_decoder")},
            "image": {"kind": "toy", "source": str(parts / "image_decoder")},
        },
        output_projection={"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        lora={"r": 4, "lora_alpha": 4},
    ).save_pretrained(folder / "model")
    (folder / "curves").mkdir()
    records = []
    for (level, start), (slope, way) in ((a, b) for a in KINDS.items() for b in SLOPES.items()):
        file = folder / "curves" / f"{level} {slope}.curve"
        save_curve(Curve(start + way * np.linspace(0, 1, 5), 0.1), file)
        shown = [{"type": "curve", "path": f"curves/{file.name}"}, {"type": "text", "text": "What is it?"}]
        made = [{"type": "curve", "caption": f"a {level} {slope} curve"}]
        for question, answer in ((shown, f"A {level} one."), (f"plot {level} {slope}", made)):
            records.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    write_lines(folder / "instruct.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Where a few steps of stage 3, with sample answers, left the model."""
    output = tmp_path_factory.mktemp("run")
    options = {"max_steps": 20, "save_steps": 20, "per_device_train_batch_size": 8, "sample_steps": 20, "sample_count": 2}
    return run_stage("instruct", config_for(world, "instruct", output, **options))


@pytest.fixture(scope="module")
def pipeline(trained):
    return NextGPTPipeline.from_pretrained(trained)


def ask(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_it_is_learned_in_both_directions(trained) -> None:
    first, *_, last = log_of(trained)
    for part in ("text", "conditioning/curve/level", "conditioning/curve/slope"):
        assert last[f"loss/{part}"] < first[f"loss/{part}"]
    assert not any("image" in name for name in last), "the data hold no pictures"


def test_what_was_saved_is_what_is_loaded(trained, pipeline) -> None:
    saved = checkpoint_tensors(trained)
    for name in ("fc.weight", "query_embs", "heads.slope.query_embs"):
        loaded = pipeline.model.output_projections["curve"].get_parameter(name)
        assert torch.equal(loaded, saved[f"output_projections.curve.{name}"])
    config = json.loads((trained / "config.json").read_text())
    assert config["signal_tokens"] == {"curve": 3, "image": 4}
    assert pipeline.signal_tokens["curve"] == ["[CRV0]", "[CRV1]", "[CRV2]"]
    assert "<|curve|>" in pipeline.processor.apply_chat_template(ask({"type": "curve", "path": "unread"}))


def test_an_answer_holds_it_and_it_is_shown_and_saved(world, pipeline, tmp_path) -> None:
    given = {"type": "curve", "path": str(world / "curves" / "high rising.curve")}
    reply = pipeline(ask(given, {"type": "text", "text": "More."}), require={"curve": 2}, curve={"points": 5}, seed=7)
    assert [len(curve.heights) for curve in reply.curves] == [5, 5] and reply.images == []
    assert [part["seed"] for part in reply.message["content"] if part["type"] == "curve"] == [7, 8]
    *files, record = reply.save(tmp_path)
    assert [file.name for file in files] == ["answer-0.curve", "answer-1.curve"]
    assert guess_modality(files[0]) == "curve"
    np.testing.assert_array_equal(load_media("curve", files[0]).heights, reply.curves[0].heights)
    following = [*ask(given), reply.message, *ask({"type": "curve", "path": str(files[1])})]
    assert pipeline(following, require={"image": 1}).images[0].size == (8, 8)
    with pytest.raises(AttributeError, match="melodies"):
        _ = reply.melodies


def test_a_stream_and_a_batch_give_the_same(pipeline) -> None:
    questions = [ask({"type": "text", "text": text}) for text in ("plot high rising", "plot low")]
    replies = pipeline(questions, require={"curve": 1}, seed=0)
    for question, reply in zip(questions, replies, strict=True):
        events = list(pipeline.stream(question, require={"curve": 1}, seed=0))
        [done] = [event for event in events if isinstance(event, MediaDone)]
        np.testing.assert_allclose(done.media.heights, reply.curves[0].heights, atol=1e-4)


def test_what_is_shown_changes_what_the_model_says_in_plain_generate_too(world, pipeline) -> None:
    files = [world / "curves" / f"{name}.curve" for name in ("high rising", "low falling")]
    logits = []
    for file in files:
        inputs = pipeline.processor(ask({"type": "curve", "path": str(file)}))
        assert inputs["curve_values"].shape == (1, 8)
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        logits.append(pipeline.model.generate(**inputs, **options).logits[0])
    assert not torch.allclose(*logits, atol=1e-3)


def test_data_of_other_projects_are_converted_and_checked(world, trained, tmp_path) -> None:
    (tmp_path / "curves").mkdir()
    save_curve(Curve(np.ones(1), 0.1), tmp_path / "curves" / "a point.curve")
    turns = [{"from": "human", "value": "<curve>\nWhat is it?"}, {"from": "gpt", "value": "A point."}]
    (tmp_path / "theirs.json").write_text(json.dumps([{"curves": ["a point.curve"], "conversations": turns}]))
    assert convert_files([tmp_path / "theirs.json"], tmp_path / "ours.jsonl").conversations == 1
    [message, _] = json.loads((tmp_path / "ours.jsonl").read_text())["messages"]
    assert message["content"][0] == {"type": "curve", "path": "curves/a point.curve"}
    report = check_files([tmp_path / "ours.jsonl"], str(trained), workers=0)
    assert "1 points; use a longer one" in report.problems[0].reason


@pytest.mark.slow
def test_other_processes_that_read_the_data_know_it(world, tmp_path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings(world, "instruct", tmp_path, features=str(tmp_path / "features"))))
    cache_features("instruct", str(file), processes=2)
    assert {folder.name.rpartition("-")[0] for folder in (tmp_path / "features").iterdir()} >= {"captions-toy-curve"}


def test_the_chat_keeps_and_shows_it(world, pipeline, tmp_path) -> None:
    from nextgpt.demo.conversations import Conversation, Turn
    from nextgpt.demo.view import shown

    conversation = Conversation("secret", tmp_path)
    conversation.turns.append(Turn([conversation.keep_file(world / "curves" / "low rising.curve")]))
    [figure, _] = shown(conversation)
    assert "<a href=" in figure.html and "low%20rising.curve" in figure.html


def test_commands_that_such_a_program_runs_take_it(world, trained, tmp_path, capsys) -> None:
    main(["generate", "What is it?", "--curve", str(world / "curves" / "low rising.curve"), "--model", str(trained)]
         + ["--require", "curve=1", "--out", str(tmp_path)])  # fmt: skip
    assert (tmp_path / "curve-001.curve").is_file()
    main(["info", str(trained)])
    assert "curve (3 signal tokens)" in capsys.readouterr().out


def test_reports_know_it(trained) -> None:
    parts = {part.name: part.parameters for part in count_parameters(trained).parts}
    assert parts["encoder"] == 8 * 16 + 16 and parts["curve output projection"] > 0
    about = [finding for finding in examine(str(trained)) if "curve" in finding.what]
    assert about and all(finding.works for finding in about)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "lines.curve: not a curve; give a JSON file with heights and step"),
        ('{"heights": [1, 2], "step": 31}', "lines.curve: 62 s long, at most 60 s are taken; cut it"),
        ('{"heights": ["x"], "step": 1}', "lines.curve: not a readable curve .* really is a curve"),
    ],
    ids=["another kind", "too long", "broken"],
)
def test_a_file_that_is_not_taken_is_named(pipeline, content, message, tmp_path) -> None:
    (tmp_path / "lines.curve").write_text(content)
    with pytest.raises(UserInputError, match=message):
        pipeline(ask({"type": "curve", "path": str(tmp_path / "lines.curve")}))


def test_an_encoder_that_cannot_prepare_what_it_names_says_so(pipeline, monkeypatch) -> None:
    monkeypatch.delattr(CurvePreprocessor, "curve")
    with pytest.raises(ValueError, match="CurvePreprocessor has no method 'curve'"):
        pipeline(ask({"type": "curve", "curve": Curve(np.ones(3), 0.1)}))


# ---------------------------------------------------------------------- conditioning

GIVEN = {"level": torch.zeros(1, ROWS, WIDTH), "slope": torch.zeros(1, 3)}


@pytest.fixture(scope="module")
def decoder(world) -> Decoder:
    return load_decoder("toy-curve", str(world / "parts" / "curve_decoder"))


def test_what_is_made_changes_with_each_tensor(decoder) -> None:
    def heights(**changes):
        return decoder.generate(GIVEN | changes, seeds=[0])[0].heights

    assert not heights().any()
    assert heights(level=torch.ones(1, ROWS, WIDTH)).min() == 1
    assert heights(slope=torch.ones(1, 3))[[0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        ({"level": GIVEN["level"]}, "takes 'slope', which is missing"),
        (GIVEN | {"hue": torch.zeros(1, 3)}, "takes no 'hue'"),
        (GIVEN | {"slope": torch.zeros(1, 4)}, r"takes 'slope' of shape \[N, 3\], got \[1, 4\]"),
        (GIVEN | {"slope": torch.zeros(2, 3)}, "1 rows of 'level' and 2 of 'slope'"),
    ],
    ids=["missing", "extra", "misshapen", "too many rows"],
)
def test_conditioning_that_does_not_fit_is_refused_by_name(decoder, conditioning, message) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        decoder.generate(conditioning, seeds=[0])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"level": TensorSpec((ROWS, WIDTH))}, "takes no 'slope'"),
        ({"level": TensorSpec((ROWS, WIDTH)), "slope": TensorSpec((5,))}, r"'slope' of shape \[N, 5\], got \[4, 3\]"),
        ({name: TensorSpec(tuple(tensor.shape[1:])) for name, tensor in GIVEN.items()} | {"hue": TensorSpec((2,))}, "'hue'"),
    ],
    ids=["undeclared", "misshapen", "not encoded"],
)
def test_a_decoder_that_encodes_other_than_it_declares_stops_the_training_by_name(
    world, declared, message, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(CurveDecoder, "read_conditioning_spec", classmethod(lambda cls, source, revision=None: declared))
    options = {"features": str(tmp_path / "features")}
    with pytest.raises(UserInputError, match=f"decoder 'toy-curve' at .*{message}.* make .*_encode agree") as refused:
        run_stage("instruct", config_for(world, "instruct", tmp_path / "run", **options))
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "image"}, "The name 'image' of the modality 'image' is taken by 'image'"),
        ({"name": "arc", "plural": "videos"}, "The plural 'videos' of the modality 'arc' is taken by 'video'"),
        ({"name": "arc", "plural": "arcs", "signal": "AUD"}, "The signal 'AUD' of the modality 'arc' is taken by 'audio'"),
        ({"name": "arc"}, "The plural 'curves' of the modality 'arc' is taken by 'curve'"),
        ({"signal_tokens": 5}, "The name 'curve' of the modality 'curve' is taken by 'curve'"),
        ({"name": "text"}, "The modality 'text' cannot be called so"),
        ({"name": "half"}, "The modality 'half' cannot be called so, because that means something else in"),
        ({"name": "arc", "plural": "message", "signal": "ARC"}, "The plural 'message' of the modality 'arc'"),
        ({"name": "An Arc"}, "The modality 'An Arc' cannot be called so, because that is not made of a-z"),
        ({"name": "arc", "signal": "[arc]"}, r"The modality 'arc' has the signal '\[arc\]'.*expected capitals"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_modality_whose_names_are_taken_is_refused(changes, message) -> None:
    before = dict(MODALITIES)
    with pytest.raises(ValueError, match=message) as refused:
        register_modality(dataclasses.replace(CURVE, **changes))
    assert "\n" not in str(refused.value) and before == MODALITIES


def test_an_encoder_or_a_decoder_whose_name_is_taken_is_refused() -> None:
    class Another(Decoder):
        kind, modality = "toy-curve", "curve"

    class AnotherEncoder(Encoder):
        config_class = CurveEncoderConfig

    with pytest.raises(ValueError, match=r"kind 'toy-curve' of .*Another is taken by toys.curve_decoder.CurveDecoder"):
        register_decoder(Another)
    with pytest.raises(ValueError, match=r"'toy-curve-encoder' of .*AnotherEncoder is taken by toys.curve_encoder"):
        register_encoder(AnotherEncoder)
    assert register_decoder(CurveDecoder) is CurveDecoder and register_encoder(CurveEncoder) is CurveEncoder
    assert register_modality(CURVE) is CURVE, "once more the same is nothing new"


def test_the_ids_of_the_tokens_do_not_depend_on_the_order_of_registration() -> None:
    arc = register_modality(dataclasses.replace(CURVE, name="arc", plural="arcs", signal="ARC"))
    try:
        vocabulary = SignalVocabulary.create({"curve": 1, "arc": 1, "image": 1}, ["curve", "arc", "audio"], 10)
        assert vocabulary.strings == ["[IMG0]", "[ARC0]", "[CRV0]", "<|audio|>", "<|arc|>", "<|curve|>"]
    finally:
        del MODALITIES[arc.name]


def test_a_decoder_stands_under_the_modality_that_it_makes(world) -> None:
    config = NextGPTConfig.from_pretrained(world / "model")
    config.decoders["curve"]["kind"] = "toy"
    with pytest.raises(UserInputError, match="the curve decoder is a 'toy', which makes image"):
        _ = config.conditioning_shapes


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (
            MODALITIES,
            "curve",
            "decoders for curve: the modalities are image, audio, video;.*register_modality first",
        ),
        (ENCODERS, "toy-curve-encoder", "model_type 'toy-curve-encoder', expected one of .*nextgpt.register_encoder first"),
        (DECODERS, "toy-curve", "the curve decoder: Unknown decoder kind 'toy-curve'.*nextgpt.register_decoder first"),
    ],
    ids=["modality", "encoder", "decoder"],
)
def test_a_program_that_did_not_register_it_is_told_so_in_one_line(trained, table, name, message, monkeypatch) -> None:
    monkeypatch.delitem(table, name)
    for load in (NextGPTPipeline, NextGPTForConditionalGeneration):
        with pytest.raises(NextGPTError, match=message) as refused:
            load.from_pretrained(trained)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("table", [MODALITIES, ENCODERS], ids=["modality", "encoder"])
def test_a_processor_without_them_says_so_too(trained, table, monkeypatch) -> None:
    monkeypatch.delitem(table, "curve" if table is MODALITIES else "toy-curve-encoder")
    with pytest.raises(NextGPTError, match=r"processor_config.json: .*curve.*nextgpt.register_\w+ first"):
        NextGPTProcessor.from_pretrained(trained)


def test_rows_of_the_package_are_whole() -> None:
    for name, row in MODALITIES.items():
        assert isinstance(row, Modality) and row.name == name
        assert row.suffix.lstrip(".") in row.suffixes and "{address}" in row.player and "{label}" in row.player


def test_what_only_the_package_knows_does_not_grow_with_a_plug_in() -> None:
    tests = Path(__file__).parents[1]
    program = (
        f"import sys; sys.path.append({str(tests)!r}); from toys.curve import CURVE; "
        "from nextgpt import register_modality; register_modality(CURVE); "
        "from nextgpt.signals import MODALITIES; assert MODALITIES == ('image', 'audio', 'video'), MODALITIES"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tests.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
