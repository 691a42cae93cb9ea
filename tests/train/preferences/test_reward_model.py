"""A reward model: TRL's loss, learning from words and from pictures, saving, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from nextgpt.__main__ import main
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.signals import answer_only
from nextgpt.train.nano.dialogues.composer import SYSTEM_PROMPT
from nextgpt.train.preferences.pairs import read_pairs
from nextgpt.train.preferences.reward_model.model import Answer, RewardModel
from nextgpt.train.preferences.reward_model.training import RewardSettings, bradley_terry_loss, train_reward
from nextgpt.train.preferences.rewards import load_reward
from tiny_models import save_tiny_model


def says(role: str, *parts: str | dict) -> list[dict]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": role, "content": content}]


def write(file: Path, pairs: list[tuple[str, list, list]]) -> Path:
    lines = [
        {"prompt": says("user", prompt), "chosen": says("assistant", *a), "rejected": says("assistant", *b)}
        for prompt, a, b in pairs
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Pairs of which the shouted answer is the better one."""
    pairs = [(f"Question {i}?", [f"the answer is {i}!!!"], [f"the answer is {i}."]) for i in range(20)]
    return write(tmp_path_factory.mktemp("words") / "pairs.jsonl", pairs)


@pytest.fixture(scope="module")
def trained(model, words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "reward"
    settings = RewardSettings(epochs=40, learning_rate=0.05)
    report = train_reward(model, [words], folder, settings, device="cpu", dtype="float32")
    assert report.accuracy == 1.0 and (report.pairs, report.heldout) == (16, 4)
    return folder


def test_the_loss_is_trls_on_words(model, words, tmp_path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import DataCollatorForPreference

    reward, pairs = RewardModel.from_parts(model, "cpu", "float32"), read_pairs([words])[:5]
    pairs[0].chosen[0]["content"][0]["text"] += " And so on." * 3  # so that rows are padded
    sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
    prompts = [pair.prompt for pair in pairs]
    ours = bradley_terry_loss(*(reward.head(reward.features(prompts, side)) for side in sides))

    base = Path(model).parent / "parts" / "language_model"
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    theirs.score.load_state_dict(reward.head.score.state_dict())
    rows = []
    for prompt, *answers in zip(prompts, *sides, strict=True):
        texts = [reward.processor([[*prompt, *answer]], add_generation_prompt=False)["input_ids"][0] for answer in answers]
        rows.append({"chosen_ids": texts[0].tolist(), "rejected_ids": texts[1].tolist()})
    arguments = trl.RewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, disable_dropout=True)
    tokenizer = reward.processor.tokenizer
    trainer = trl.RewardTrainer(
        theirs, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    assert not batch["attention_mask"].all()
    theirs.eval()
    with torch.no_grad():
        assert ours.item() == pytest.approx(trainer.compute_loss(theirs, dict(batch)).item(), abs=1e-5)


def test_it_learns_from_words_and_says_so_of_others_after_it_was_saved(trained) -> None:
    facts = json.loads((trained / "reward.json").read_text())
    assert facts["accuracy"] == 1.0 and facts["heldout"] == 4 and len(facts["interval"]) == 2
    reward = load_reward(f"reward:{trained}")
    cut = [says("assistant", "so it is.")[0] | {"finished": False}]  # as `sample` writes one that reached the limit
    scores = reward([says("user", "Another?")] * 2, [cut, says("assistant", "so it is!!!")])
    assert scores[1] > scores[0]


def test_equal_words_with_other_pictures_are_told_apart_by_the_encoder(model, tmp_path) -> None:
    pairs = []
    for i in range(12):
        made = []
        for colour in ((200 + i, 10 * (i % 3), 0), (0, 10 * (i % 3), 200 + i)):
            Image.new("RGB", (16, 16), colour).save(tmp_path / f"{len(pairs)}-{len(made)}.png")
            made.append({"type": "image", "path": f"{len(pairs)}-{len(made)}.png", "seed": 1})
        pairs.append((f"Draw {i}.", ["Here:", made[0]], ["Here:", made[1]]))
    settings = RewardSettings(epochs=60, learning_rate=0.02, heldout_share=0.3)
    report = train_reward(model, [write(tmp_path / "pairs.jsonl", pairs)], tmp_path / "out", settings, device="cpu")
    assert report.accuracy == 1.0
    plain, picture = says("assistant", "Here:"), pairs[0][1]
    picture = [picture[0], picture[1] | {"path": str(tmp_path / picture[1]["path"])}]
    reward = RewardModel.from_pretrained(tmp_path / "out", "cpu")
    alone = reward([says("user", "Draw 0.")], [says("assistant", *picture)])
    both = reward([says("user", "Draw 0.")] * 2, [plain, says("assistant", *picture)])
    assert both[1] == pytest.approx(alone[0], abs=1e-4), "an answer's score does not depend on what stands beside it"


def test_the_command_prints_the_accuracy_and_reads_no_answer_twice(model, words, tmp_path, capsys) -> None:
    given = ["train", "reward", model, "--data", str(words), "--out", str(tmp_path / "reward"), "--device", "cpu"]
    assert main([*given, "--epochs", "3"]) == 0
    assert "held-out pairs: " in capsys.readouterr().out
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "reward" / "features").rglob("*.safetensors")}
    assert shards and main([*given, "--epochs", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 16
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "reward" / "features").rglob("*.safetensors")}
    assert after == shards


def test_a_preset_stays_one_where_a_folder_of_its_name_lies(model, tmp_path, monkeypatch) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    reward = RewardModel.from_parts(model, "cpu", "float32")
    RewardModel(reward.model, reward.processor, reward.head, "nano").save_pretrained(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "reward.json").read_text())
    assert facts["model"] == "nano" and not facts["is_folder"]


def test_it_reads_the_kinds_that_an_answer_could_hold_as_the_model_was_told_of_them(model) -> None:
    reward = RewardModel.from_parts(model, "cpu", "float32")
    told = says("system", f"{SYSTEM_PROMPT} {answer_only(['text'])}")
    prompts, completions = [says("user", "Draw a cat.")] * 3, [says("assistant", "No.")] * 3
    plain = reward.features(prompts, completions)
    some = reward.features(prompts, completions, [None, ["text"], ["text", "image"]])
    as_told = reward.features([[*told, *prompts[0]]], completions[:1])
    assert torch.allclose(some.last[1], as_told.last[0], atol=1e-6)
    assert torch.allclose(some.last[[0, 2]], plain.last[:2], atol=1e-6) and not torch.allclose(some.last[1], some.last[0])


def test_a_pair_with_media_that_the_encoder_does_not_know_is_named_before_anything_is_read(model, tmp_path) -> None:
    reward = RewardModel.from_parts(model, "cpu", "float32")
    reward.embedder.encoder = SimpleNamespace(modalities=("audio",))
    drawn = says("assistant", {"type": "image", "path": "1.png"})
    with pytest.raises(UserInputError, match="^pairs.jsonl:7: the encoder has no embedding of an image; it takes audio"):
        reward.cached_features([Answer(says("user", "Draw."), drawn, "pairs.jsonl:7")], tmp_path, "Reading")


def test_it_ranks_answers(trained, tmp_path, capsys) -> None:
    answers = [message for text in ("so.", "so!!!", "so it is.") for message in says("assistant", text)]
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": says("user", "Who?"), "answers": answers}) + "\n")
    out = tmp_path / "pairs.jsonl"
    given = ["preferences", "rank", str(tmp_path), "--by", f"reward:{trained}", "-o", str(out), "--device"]
    assert main([*given, "nowhere"]) == 2 and "device 'nowhere' cannot be used here" in capsys.readouterr().err
    assert main([*given, "cpu"]) == 0
    (pair,) = read_pairs([out])
    assert pair.chosen == says("assistant", "so!!!") and pair.ranked_by == f"reward:{trained}"


def test_it_judges_two_models_by_their_answers_and_what_it_cannot_read_is_counted(trained, tmp_path, capsys) -> None:
    def write(name: str, *answers: list) -> str:
        turns = [[*says("user", f"Q{i}?"), *says("assistant", *answer)] for i, answer in enumerate(answers)]
        (tmp_path / name).write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
        return str(tmp_path / name)

    untold = {"type": "image", "caption": "a cat"}  # without a file
    a = write("a.jsonl", ["so!!!"], ["so."], ["equal"], ["so", untold])
    b = write("b.jsonl", ["so."], ["so!!!"], ["equal"], ["so"])
    given = ["evaluate", "judge", a, b, "--questions", a, "--judge", f"reward:{trained}", "--out", str(tmp_path / "out")]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tally"]
    rates = {name: rate[0] for name, rate in found["rates"].items()}
    assert rates["win"] == rates["tie"] == rates["loss"] == pytest.approx(1 / 3) and rates["win rate"] == 0.5
    assert list(found["problems"].values()) == [[4]] and "no file" in next(iter(found["problems"]))
    assert (tmp_path / "out" / "index.html").is_file()
    assert main(given[:-4] + given[-2:]) == 2 and "no judge: give --judge" in capsys.readouterr().err


def test_what_is_no_reward_model_or_belongs_to_other_weights_is_refused(model, trained, tmp_path) -> None:
    with pytest.raises(ModelLoadError, match="no reward model"):
        load_reward(f"reward:{tmp_path}")
    facts = json.loads((trained / "reward.json").read_text())
    (tmp_path / "reward.json").write_text(json.dumps(facts | {"is_folder": False, "model": model, "fingerprint": "0" * 16}))
    with pytest.raises(ModelLoadError, match="was trained on other weights"):
        load_reward(f"reward:{tmp_path}")
    (tmp_path / "reward.json").write_text(json.dumps(facts | {"is_folder": False, "model": str(tmp_path / "gone")}))
    with pytest.raises(ModelLoadError, match="the model that it was trained on is not there"):
        load_reward(f"reward:{tmp_path}")
    (tmp_path / "reward.json").write_text(json.dumps(facts | {"is_folder": False, "model": model}))
    with pytest.raises(ModelLoadError, match="not the head of this model"):
        load_reward(f"reward:{tmp_path}")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(model, words, tmp_path, capsys) -> None:
    (tmp_path / "full").write_text("a file in the way")
    given = ["--data", str(words), "--out", str(tmp_path / "full" / "reward"), "--device", "cpu"]
    assert main(["train", "reward", model, *given]) == 2
    assert "reward: cannot be written (Not a directory); make room" in capsys.readouterr().err.splitlines()[-1]
    assert main(["train", "reward", model, "--data", str(words), "--out", model]) == 2
    assert f"{model}: holds a model, " in capsys.readouterr().err.splitlines()[-1]


def test_pairs_that_cannot_be_learned_from_are_refused_by_their_line(model, words, tmp_path) -> None:
    with pytest.raises(UserInputError, match="pairs.jsonl:1: the prompt is held out"):
        train_reward(model, [words], tmp_path, RewardSettings(), heldout=[words])
    long = write(tmp_path / "long.jsonl", [("Who?", ["a " * 600], ["no"]), ("What?", ["b"], ["c"])])
    with pytest.raises(UserInputError, match="long.jsonl:1: .*tokens"):
        train_reward(model, [long], tmp_path, RewardSettings(heldout_share=0.5), device="cpu")
