"""Training data: other projects' formats, mixtures, the order of an epoch, checks, caches, bad items."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextgpt.__main__ import main
from nextgpt.decoders import Audio, Video
from nextgpt.errors import UserInputError
from nextgpt.media import save_media
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.check import check_files
from nextgpt.train.data.convert import convert_files
from nextgpt.train.data.dataset import ChatCollator, ChatDataset, Reader, TrainingFeatures
from nextgpt.train.data.sampler import BLANK, EpochSampler, shares
from nextgpt.train.stages import run_stage
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_config
from tiny_training import COLOURS, REPOSITORY, config_for, log_of, naming, settings, write_lines

# ---------------------------------------------------------------------- formats

HUMAN, GPT = {"from": "human"}, {"from": "gpt"}
PICTURE, SOUND = {"type": "image", "path": "images/1.jpg"}, {"type": "audio", "path": "audios/1.wav"}
FORMATS = {
    "pairs for stage 1": (
        {"caption": "a dog \r\n", "id": "1", "image_name": "1.jpg"},
        [
            {"role": "user", "content": [PICTURE, {"type": "text", "text": "Describe the image."}]},
            {"role": "assistant", "content": "a dog"},
        ],
    ),
    "comprehension": (
        {
            "input_audio": "1.wav",
            "conversations": [HUMAN | {"value": "<audio>\nWhat is it?"}, GPT | {"value": "Rain."}],
        },
        [
            {"role": "user", "content": [SOUND, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "Rain."},
        ],
    ),
    "generation": (
        {
            "output_image": "1.jpg",
            "image_captions": "a dog",
            "image_caption_embeddings": "1.jpg.npy",
            "conversations": [HUMAN | {"value": "draw a dog"}, GPT | {"value": "Here it is: <image>"}],
        },
        [
            {"role": "user", "content": "draw a dog"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Here it is:"}, PICTURE | {"caption": "a dog"}],
            },
        ],
    ),
    "a dialogue with media on both sides in several turns": (
        {
            "input_image": ["1.jpg"],
            "input_audio": "1.wav",
            "output_image": ["1.jpg", "gone.jpg"],
            "image_captions": ["first", "second"],
            "conversations": [
                HUMAN | {"value": "What is <image> this?"},
                GPT | {"value": "Like <image> that."},
                HUMAN | {"value": "And this? <audio>"},
                GPT | {"value": "<image>"},
            ],
        },
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is"}, PICTURE, {"type": "text", "text": "this?"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Like"},
                    PICTURE | {"caption": "first"},
                    {"type": "text", "text": "that."},
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "And this?"}, SOUND]},
            {"role": "assistant", "content": [{"type": "image", "caption": "second"}]},
        ],
    ),
    "LLaVA": (
        {"id": "1", "image": "1.jpg", "conversations": [HUMAN | {"value": "Why?\n<image>"}, GPT | {"value": "So."}]},
        [
            {"role": "user", "content": [{"type": "text", "text": "Why?"}, PICTURE]},
            {"role": "assistant", "content": "So."},
        ],
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
    ),
    "ShareGPT": (
        {
            "id": "x",
            "conversations": [
                {"from": "system", "value": "Be kind."},
                HUMAN | {"value": "hi"},
                {"from": "chatgpt", "value": "hello"},
            ],
        },
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
        ],
    ),
}


@pytest.fixture
def media(tmp_path) -> Path:
    """A folder of media as the original lays them out."""
    for file in ("images/1.jpg", "audios/1.wav"):
        (tmp_path / "media" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / file).touch()
    return tmp_path / "media"


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_become_chat_messages(name, media) -> None:
    record, expected = FORMATS[name]
    source = media / "source.json"
    source.write_text(json.dumps([record]))
    report = convert_files([source], media / "out.jsonl")
    assert report.conversations == 1 and not report.left_out
    assert json.loads((media / "out.jsonl").read_text())["messages"] == expected


def test_pairs_become_wishes_for_stage_2_and_paths_start_from_the_new_file(media) -> None:
    source = media / "source.jsonl"
    source.write_text(json.dumps({"caption": "rain", "audio_name": "1.wav"}) + "\n")
    convert_files([source], media.parent / "elsewhere" / "out.jsonl", task="decoders")
    user, assistant = json.loads((media.parent / "elsewhere" / "out.jsonl").read_text())["messages"]
    assert user["content"] == "Show me a sound: rain"
    assert assistant["content"] == [{"type": "audio", "caption": "rain", "path": "../media/audios/1.wav"}]


def test_what_cannot_be_converted_is_counted_by_reason(media, capsys) -> None:
    good, _ = FORMATS["LLaVA"]
    unknown = good | {"conversations": [{"from": "narrator", "value": "Once."}]}
    no_file = {"image": [], "conversations": good["conversations"]}
    source = media / "source.json"
    source.write_text(json.dumps([good, unknown, no_file, no_file]))
    assert main(["data", "convert", str(source), "-o", str(media / "out.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "out.jsonl: 1 conversations" in printed
    assert "left out 1: a turn is from 'narrator'" in printed
    assert "left out 2: a <image> of the user names no file" in printed
    source.write_text(json.dumps([{"question": "?"}]))
    assert main(["data", "convert", str(source), "-o", str(media / "out.jsonl")]) == 2
    assert "no known format has the keys question" in capsys.readouterr().err


def test_converted_data_can_be_trained_on(world, tmp_path) -> None:
    record = {"output_image": "red.png", "image_captions": "red", "conversations": FORMATS["generation"][0]["conversations"]}
    (tmp_path / "source.json").write_text(json.dumps([record]))
    convert_files([tmp_path / "source.json"], tmp_path / "data.jsonl", media_folder=world / "pictures")
    options = {"data": str(tmp_path / "data.jsonl"), "max_steps": 1, "logging_steps": 1, "denoising": True}
    log = log_of(run_stage("align_decoders", config_for(world, "align_decoders", tmp_path / "out", **options)))
    assert log[0]["loss/denoising/image"] > 0


# ---------------------------------------------------------------------- the order of an epoch


def epoch(sampler: EpochSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_shows_everything_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(np.zeros(50), seed=0)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert epoch(EpochSampler(np.zeros(50), seed=0), 1) == second, "an epoch is known by its number"
    assert epoch(EpochSampler(np.zeros(50), seed=1), 0) != first


def test_an_epoch_may_end_with_blanks_that_teach_nothing(world, processor) -> None:
    order = epoch(EpochSampler(np.zeros(50), seed=0, multiple=8), 0)
    assert sorted(order[:50]) == list(range(50)) and order[50:] == [BLANK] * 6
    reader = Reader(processor)
    blank = ChatDataset([world / "instruct.jsonl"], reader)[BLANK]
    batch = ChatCollator(0, TrainingFeatures())([blank])
    assert (batch["labels"] == -100).all() and batch["ids"] == []


def test_a_mixture_has_its_weights_and_repeats_no_conversation_before_all_were_shown() -> None:
    sources = np.repeat([0, 1, 2], [80, 10, 10])
    order = np.array(epoch(EpochSampler(sources, seed=0, weights=[1, 1, 2]), 0))
    assert np.bincount(sources[order]).tolist() == [25, 25, 50]
    assert np.bincount(order).max() == 5
    assert set(np.bincount(order)[80:90]) == {2, 3} and set(np.bincount(order)[90:]) == {5}
    assert sum(shares([1, 1, 1], 100)) == 100


def test_length_groups_put_similar_lengths_into_a_step() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4000)
    sources = np.zeros(4000)
    grouped = np.array(epoch(EpochSampler(sources, seed=0, lengths=lengths, step_size=8), 0))
    shuffled = np.array(epoch(EpochSampler(sources, seed=0), 0))
    assert sorted(grouped) == list(range(4000))

    def spread(order: np.ndarray) -> float:
        return np.ptp(lengths[order].reshape(-1, 8), axis=1).mean()

    assert spread(grouped) < 0.1 * spread(shuffled)


def test_weights_must_fit_the_files(world, tmp_path) -> None:
    with pytest.raises(UserInputError, match=r"data_weights is \[1, 2\], expected a number for each of the 1 files"):
        config_for(world, "instruct", tmp_path, data_weights=[1, 2])
    files = [str(world / f"{stage}.jsonl") for stage in ("align_encoders", "align_decoders")]
    options = {"data": files, "data_weights": [1, 0], "max_steps": 2, "logging_steps": 1}
    log = log_of(run_stage("instruct", config_for(world, "instruct", tmp_path, **options)))
    assert "loss/conditioning/image" not in log[0], "a file of weight 0 was trained on"
    with pytest.raises(UserInputError, match="sequential takes the files as they stand: leave data_weights out"):
        run_stage("instruct", config_for(world, "instruct", tmp_path, **options, train_sampling_strategy="sequential"))
    files[1] = write_lines(world / "all_bad.jsonl", [naming("gone")])
    options |= {"data_weights": [1, 1], "on_bad_item": "skip"}
    with pytest.raises(UserInputError, match=r"all_bad.jsonl has weight 1 and no usable conversation"):
        run_stage("instruct", config_for(world, "instruct", tmp_path, **options))


def test_memory_does_not_grow_with_the_data(tmp_path) -> None:
    """The memory that opening, ordering and reading take is of the order of the index, not of the conversations."""
    program = """
import sys
import numpy as np
from nextgpt.hardware import peak_memory
from nextgpt.train.data.store import Example, ExampleStore

def conversations(count):
    ids = np.arange(1000, dtype=np.int32)
    for number in range(count):
        yield Example(ids, ids > 500, {"id": f"data.jsonl:{number}", "inputs": [], "outputs": []}, 0)

ExampleStore.write(sys.argv[1] + "/small", conversations(10))
before = peak_memory()
store = ExampleStore.write(sys.argv[1] + "/large", conversations(40_000))
written = peak_memory()
assert store[39_999].record["id"] == "data.jsonl:39999" and int(store.lengths.sum()) == 40_000_000
print(written - before, peak_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in (tmp_path / "large").iterdir())
    assert size > 200_000_000
    assert all(int(grown) < 0.1 * size for grown in done.stdout.split()), done.stdout


# ---------------------------------------------------------------------- bad items


def write_broken(world: Path, tmp_path: Path) -> str:
    (world / "pictures" / "broken.png").write_bytes(b"no picture")
    lines = [naming("red"), naming("gone"), naming("broken"), {"messages": "none"}, naming("blue")]
    return write_lines(world / "with_bad_items.jsonl", lines)


def test_a_bad_item_stops_training_or_is_skipped_and_listed(world, tmp_path) -> None:
    data = write_broken(world, tmp_path)
    with pytest.raises(UserInputError, match=r"with_bad_items.jsonl:2: .*gone.png: no such file"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", data=data))
    options = {"data": data, "on_bad_item": "skip", "max_steps": 1}
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "2", **options))
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert [item["where"].rpartition(":")[2] for item in skipped] == ["2", "4", "3"]
    assert "broken.png" in skipped[-1]["reason"]
    assert json.loads((folder / "run.json").read_text())["data"]["conversations"] == 2


def test_a_broken_file_stops_training_by_its_name(world, tmp_path) -> None:
    write_broken(world, tmp_path)
    data = write_lines(world / "one_broken.jsonl", [naming("broken")])
    with pytest.raises(UserInputError, match=r"broken.png"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path, data=data))
    with pytest.raises(UserInputError, match=r"every conversation has a bad item; .*broken.png"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path, data=data, on_bad_item="skip"))


@pytest.mark.slow
def test_a_check_reports_every_kind_of_problem(world, tmp_path, capsys) -> None:
    write_broken(world, tmp_path)
    Image.new("RGB", (4, 4)).save(world / "pictures" / "tiny.png")
    (world / "pictures" / "copy of red.png").write_bytes((world / "pictures" / "red.png").read_bytes())
    long = {"messages": [{"role": "user", "content": "hi " * 300}, {"role": "assistant", "content": "A long one."}]}
    mute = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}
    lines = [naming("red"), naming("gone"), naming("broken"), naming("tiny"), long, mute]
    again = json.loads(json.dumps(naming("copy of red")).replace("A copy of red", "A red"))
    untyped = json.loads(json.dumps(naming("red")).replace('"type": "image", ', ""))
    unheard = json.loads(json.dumps(naming("red")).replace('"type": "image"', '"type": "smell"'))
    file = write_lines(world / "to_check.jsonl", [*lines, again, {"messages": 1}, untyped, unheard])
    report = check_files([file], str(world / "model"), max_length=256, workers=0)
    found = [(problem.kind, int(problem.where.rpartition(":")[2])) for problem in report.problems]
    assert found == [
        ("missing", 2),
        ("broken", 3),
        ("too short", 4),
        ("too long", 5),
        ("too short", 6),
        ("duplicate", 7),
        ("broken", 8),
        ("broken", 9),
        ("broken", 10),
    ]
    assert report.conversations == 10 and sum(report.lengths.values()) == 6
    parallel = check_files([file], str(world / "model"), max_length=256, workers=1)
    assert (parallel.problems, parallel.lengths) == (report.problems, report.lengths)

    command = ["data", "check", file, "--model", str(world / "model"), "--workers", "0", "--max-length", "256"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "to_check.jsonl:2" in printed and "1 missing, 4 broken, 2 too short, 1 too long, 1 duplicate" in printed
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["conversations"] == 10
    assert main(["data", "check", str(world / "instruct.jsonl"), *command[3:]]) == 0


# ---------------------------------------------------------------------- every kind of media


@pytest.fixture(scope="module")
def media_world(tmp_path_factory) -> Path:
    """A model that takes and makes pictures, sounds and clips, and one conversation about each."""
    folder = tmp_path_factory.mktemp("all media")
    savers = {"image": save_tiny_stable_diffusion, "audio": save_tiny_audioldm, "video": save_tiny_text_to_video}
    kinds = {"image": "stable-diffusion", "audio": "audioldm", "video": "text-to-video"}
    decoders = {
        kind: {"kind": kinds[kind], "source": str(save(folder / f"{kind}_decoder"))} for kind, save in savers.items()
    }
    tiny_config(folder / "parts", decoders=decoders).save_pretrained(folder / "model")
    media = {
        "image": Image.new("RGB", (32, 32), "red"),
        "audio": Audio(np.sin(np.arange(16_000) / 20).astype(np.float32), 16_000),
        "video": Video(np.zeros((8, 32, 32, 3), np.uint8), 4),
    }
    lines = []
    for kind, medium in media.items():
        file = folder / f"a {kind}{MODALITIES[kind].suffix}"
        save_media(medium, file)
        shown = [{"type": kind, "path": file.name}, {"type": "text", "text": "Once more."}]
        made = [{"type": "text", "text": "Here: "}, {"type": kind, "caption": f"a {kind}"}]
        lines.append({"messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": made}]})
    write_lines(folder / "instruct.jsonl", lines)
    return folder


def test_a_batch_may_hold_every_kind_of_media_with_frozen_parts_in_half_precision(media_world, tmp_path) -> None:
    options = {"dtype": "bfloat16", "bf16": True, "max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 3}
    log = log_of(run_stage("instruct", config_for(media_world, "instruct", tmp_path, **options)))
    assert all(log[0][f"loss/conditioning/{kind}"] > 0 for kind in ("image", "audio", "video"))


def test_sounds_and_clips_are_checked_too(media_world) -> None:
    kept = (media_world / "instruct.jsonl").read_text()
    save_media(Audio(np.zeros(160, np.float32), 16_000), media_world / "click.wav")
    (media_world / "broken.mp4").write_bytes(b"no clip")
    changed = kept.replace("a audio.wav", "click.wav").replace("a video.mp4", "broken.mp4")
    (media_world / "to_check.jsonl").write_text(changed)
    report = check_files([media_world / "to_check.jsonl"], str(media_world / "model"), workers=0)
    assert [(problem.kind, problem.where[-1]) for problem in report.problems] == [("too short", "2"), ("broken", "3")]
    assert not check_files([media_world / "instruct.jsonl"], str(media_world / "model"), workers=0).problems


# ---------------------------------------------------------------------- the cache


@pytest.mark.slow
def test_a_cache_made_ahead_is_used_and_a_stale_one_refused(world, tmp_path, monkeypatch) -> None:
    values = settings(world, "instruct", tmp_path / "out", features=str(tmp_path / "features"), max_steps=1)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(values))
    assert main(["data", "cache", "instruct", "--config", str(file), "--processes", "2"]) == 0

    from nextgpt.decoders import StableDiffusionDecoder
    from nextgpt.encoders import ImageBind

    def refuse(*arguments):
        raise AssertionError("a frozen part ran, though its features are cached")

    with monkeypatch.context() as patch:
        patch.setattr(ImageBind, "encode", refuse)
        patch.setattr(StableDiffusionDecoder, "encode", refuse)
        assert main(["train", "instruct", "--config", str(file)]) == 0

    encoder = world / "parts" / "encoder" / "config.json"
    original = encoder.read_text()
    try:
        encoder.write_text(original + " ")
        with pytest.raises(UserInputError, match=r"image-float32-\w+ is stale: another frozen part computed it .*content"):
            run_stage("instruct", config_for(world, "instruct", tmp_path / "2", features=str(tmp_path / "features")))
        assert main(["data", "cache", "instruct", "--config", str(file)]) == 0
        run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **values | {"output_dir": str(tmp_path / "2")}))
    finally:
        encoder.write_text(original)


def test_tokenized_conversations_are_kept_from_run_to_run(world, tmp_path, monkeypatch, processor) -> None:
    first = ChatDataset([world / "instruct.jsonl"], Reader(processor), folder=tmp_path)
    monkeypatch.setattr(Reader, "__call__", None)
    second = ChatDataset([world / "instruct.jsonl"], Reader(processor), folder=tmp_path)
    assert torch.equal(first[3]["input_ids"], second[3]["input_ids"])
    with pytest.raises(TypeError):
        ChatDataset([world / "instruct.jsonl"], Reader(processor, max_length=500), folder=tmp_path)
    assert len(first) == 2 * len(COLOURS)
