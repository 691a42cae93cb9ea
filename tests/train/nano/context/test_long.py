"""Long conversations of the nano world, and what is measured with them."""

from __future__ import annotations

import json
import random

import pytest

from nextgpt import NextGPTProcessor
from nextgpt.__main__ import main
from nextgpt.train.data.check import check_files
from nextgpt.train.nano.context.conversations import QUESTIONS, RECALL, LongConversations
from nextgpt.train.nano.context.evaluate import DEPTHS, ContextReport, Losses, Measured
from nextgpt.train.nano.dialogues.turns import Made, Shown
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.evaluation.scores import Score
from nextgpt.train.nano.world.things import Picture

LENGTH = 500


@pytest.fixture(scope="module")
def heldout():
    return LongConversations(NextGPTProcessor.from_pretrained("nano"), "heldout")


def pictures(turn) -> list[Picture]:
    media = [part.medium for part in (*turn.user, *turn.assistant) if isinstance(part, Shown | Made)]
    return [medium for medium in media if isinstance(medium, Picture)]


@pytest.mark.parametrize("described", [False, True])
def test_a_needle_is_alone_on_its_background_at_its_depth_and_held_out(heldout, described):
    for depth in DEPTHS:
        needle = heldout.needle(random.Random(depth), LENGTH, depth, described)
        *turns, question = needle.turns
        assert LENGTH - 80 < heldout.opening + heldout.count(needle.turns) <= LENGTH
        [place] = [i for i, turn in enumerate(turns) if needle.picture in pictures(turn)]
        tokens = [heldout.count([turn]) for turn in turns]
        assert sum(tokens[:place]) / sum(tokens) == pytest.approx(depth, abs=0.2)
        assert needle.picture.split == "heldout"
        alike = [p for turn in turns for p in pictures(turn) if p.background == needle.picture.background]
        assert alike == [needle.picture] and needle.picture.background in question.user[0]
        said = " ".join(part for part in turns[place].assistant if isinstance(part, str))
        assert (needle.picture.concept in said) == described
        assert needle.picture.concept in question.assistant[0]
        assert needle.others == len({p.concept for turn in turns for p in pictures(turn)})
    assert not set(QUESTIONS["train"]) & set(QUESTIONS["heldout"])


def test_the_expected_answer_about_any_thing_is_right_for_that_thing_alone_and_a_doubtful_one_is_not(heldout):
    parser = AnswerParser.of_world(heldout.concepts, {})
    for concept in heldout.concepts.values():
        answer = f"On red there {'were' if concept.is_plural else 'was'} {concept.indefinite}."
        assert parser.says(answer, [concept.name]) and parser.claims(answer) == [{concept.name}]
        assert not parser.says(f"Maybe {concept.indefinite}.", [concept.name])
    needle = heldout.needle(random.Random(0), LENGTH, 0.5)
    assert parser.says(needle.turns[-1].assistant[0], [needle.picture.concept])


def test_what_is_written_to_learn_from_is_long_whole_and_never_held_out(tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    assert main(["data", "nano", "-o", str(file), "--count", "6", "--length", str(LENGTH)]) == 0
    assert "6 conversations" in capsys.readouterr().out
    report = check_files([file], "nano", max_length=LENGTH, workers=0)
    assert report.conversations == 6 and not report.problems, report.problems
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(line["intents"].count("show") == 3 and RECALL in line["intents"] for line in lines)
    captions = [part["caption"] for line in lines for m in line["messages"] for part in m["content"] if "caption" in part]
    seen = [Picture(*caption) for caption in map(_parts, captions) if caption]
    assert seen and all(picture.split == "train" for picture in seen)
    assert main(["data", "nano", "-o", str(tmp_path / "again.jsonl"), "--count", "6", "--length", str(LENGTH)]) == 0
    assert (tmp_path / "again.jsonl").read_text().replace("again/", "long/") == file.read_text()


def _parts(caption: str) -> tuple[str, str, str, str] | None:
    """ "a small cat, flat style, red background" → its parts; None of a clip."""
    start, *rest = caption.split(", ")
    if len(rest) != 2:
        return None
    _, size, concept = start.split(" ", 2)
    return concept, rest[0].removesuffix(" style"), rest[1].removesuffix(" background"), size


def test_a_length_without_room_is_one_clear_line(tmp_path, capsys):
    assert main(["data", "nano", "-o", str(tmp_path / "long.jsonl"), "--length", "60"]) == 2
    assert "length is 60, expected at least 150 tokens" in capsys.readouterr().err
    assert main(["evaluate", "context", "nano", "--length", "60"]) == 2
    assert "length is 60, expected at least 150 tokens" in capsys.readouterr().err


def test_a_model_is_measured_beyond_its_limit(capsys):
    assert main(["evaluate", "context", "nano", "--length", "1100", "-n", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    [one] = report["models"]
    assert one["positions"] == "not scaled"
    assert [each["depth"] for each in one["needles"]] == ["0%", "25%", "50%", "75%", "100%"]
    assert one["losses"][-1]["stop"] == 1100 and one["losses"][-1]["tokens"] > 0 and one["losses"][1]["mean"] > 0
    assert report["chance"][1] == pytest.approx(1 / 120) and report["chance"][1] < report["chance"][0] < 0.5


def test_models_stand_side_by_side_in_the_table():
    losses = [Losses(0, 50), Losses(50, 100, [1.0, 2.0], 9)]
    needles = [Score("picture found at depth", "0%", 3, 4)]
    models = [
        Measured("runs/yarn", "yarn, 4 × 320 positions", losses, needles),
        Measured("nano", "not scaled", losses, needles),
    ]
    table = ContextReport(100, False, (0.05, 1 / 120), models).table()
    assert "| 100 tokens | runs/yarn (yarn, 4 × 320 positions) | nano (not scaled) |" in table
    assert "| loss, positions 0 – 50 | – | – |" in table
    assert "| loss, positions 50 – 100 | 1.500 ± 0.980 | 1.500 ± 0.980 |" in table
    assert "| picture found at depth 0% | 75% (3 of 4, 30 – 95%) | 75% (3 of 4, 30 – 95%) |" in table
    assert "Chance: 5.0% by naming a thing of the conversation's pictures, 0.8% by naming any thing." in table
