"""Each recipe as a command, with a teacher that does what it is asked; and with one that does not, what is said of it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.cli.training import RECIPES as DESCRIBED
from nextgpt.errors import UserInputError
from nextgpt.hub.parts import fetch_model
from nextgpt.train.data.check import check_files
from nextgpt.train.instruct_data.generate import RECIPES, generate
from nextgpt.train.instruct_data.material import PROMPTS
from own_pictures import readme_commands


def command(teacher, folder: Path, recipe: str, *more: str | Path, count: int = 4) -> list[str]:
    words = ["data", "generate", "--recipe", recipe, "--teacher", teacher.url, "--teacher-model", "tiny"]
    return [*words, "-n", str(count), "-o", str(folder / "out.jsonl"), "--concurrency", "2", *map(str, more)]


def conversations(folder: Path) -> list[list[dict]]:
    return [json.loads(line)["messages"] for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_makes_passes_the_check_of_data(recipe, good, captions, tmp_path, capsys) -> None:
    assert main(command(good, tmp_path, recipe, "--media", captions)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out.jsonl'}: 4 conversations kept, 0 dropped; {len(good.asked)} requests" in said
    assert len(conversations(tmp_path)) == 4
    report = check_files([tmp_path / "out.jsonl"], "nano", workers=0)
    assert not report.problems and report.conversations == 4
    assert report.media > 0 or recipe in ("self-instruct", "evol-instruct")


def test_self_instruct_shows_tasks_and_asks_for_labels_first(good, tmp_path) -> None:
    report = generate("self-instruct", tmp_path / "out.jsonl", 5, good.settings(), model=None)
    assert report.conversations == 5
    prompts = good.contents
    assert len(re.findall(r"^\d\. \((?:generation|classification)\) ", prompts[0], re.MULTILINE)) == 6
    kinds = Counter(prompt.partition("\n")[0] for prompt in prompts)
    assert kinds == {"Invent tasks for an assistant.": 2, "Do a task.": 6, "Make examples of a classification.": 2}
    asked = [messages for messages in conversations(tmp_path) if messages[1]["content"] in ("yes", "no")]
    assert {messages[1]["content"] for messages in asked} == {"yes", "no"}
    assert asked[0][0]["content"].split("\n\n")[1] == "It does.", "a classification is asked with its input"


def test_later_waves_of_self_instruct_show_tasks_of_earlier_ones(good, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nextgpt.train.instruct_data.generate.WAVE", 1)
    generate("self-instruct", tmp_path / "out.jsonl", 6, good.settings(), model=None)
    invented = [prompt for prompt in good.contents if "Invent tasks" in prompt]
    shown = [len(re.findall(r"^\d\. .*\b(?:tea|rust|maps|jazz)\d", prompt, re.MULTILINE)) for prompt in invented]
    assert shown == [0, 2, *shown[2:]] and len(invented) >= 2


def test_near_duplicates_of_seeds_and_of_each_other_are_dropped_and_counted(good, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nextgpt.train.instruct_data.generate.FRUITLESS_JOBS", 3)
    seed = "Film a paper boat that drifts down a gutter after the rain."
    same = [
        {"kind": "generation", "instruction": text} for text in (seed, "Say how tall oaks grow.", "Say how tall oaks get.")
    ]
    good.answers["Invent tasks for an assistant."] = {"tasks": same}
    report = generate("self-instruct", tmp_path / "out.jsonl", 1, good.settings(), model=None)
    assert report.conversations == 1 and report.dropped == {"a near duplicate of another task (ROUGE-L of 0.7 or more)": 2}
    more = generate("self-instruct", tmp_path / "out.jsonl", 2, good.settings(), model=None)
    assert more.conversations == 1 and "the last 3 tries brought nothing; mostly: a near duplicate" in more.stopped


def test_evol_instruct_evolves_what_it_evolved(good, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nextgpt.train.instruct_data.generate.WAVE", 1)
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(json.dumps({"instruction": "Name uses of salt.", "input": "", "output": "Soup."}) + "\n")
    generate("evol-instruct", tmp_path / "out.jsonl", 5, good.settings(), seeds=seeds, model=None)
    evolved = [prompt for prompt in good.contents if '{"instruction"' in prompt]
    assert "Name uses of salt." in evolved[0] and any("Explain step number" in prompt for prompt in evolved)
    assert len({prompt.partition("\n")[0] for prompt in evolved}) > 1, "more than one way to evolve"


def test_failed_evolutions_are_dropped_by_their_rule(good, tmp_path) -> None:
    answers = iter(["Sorry, I cannot do that.", "It is as they were.", "Here is what it takes."])
    good.answers["Answer a task."] = lambda prompt, number: next(answers)
    report = generate("evol-instruct", tmp_path / "out.jsonl", 1, good.settings(), model=None)
    assert report.conversations == 1
    assert sorted(report.dropped) == [
        "an answer of punctuation and stop words alone",
        "an apology of fewer than 80 words in place of an answer",
    ]


def test_media_of_captions_come_in_every_form(good, captions, tmp_path) -> None:
    generate("captions-to-instructions", tmp_path / "out.jsonl", 6, good.settings(), media=captions, model=None)
    found = conversations(tmp_path)
    wishes = [messages for messages in found if isinstance(messages[1]["content"], list)]
    assert {part["caption"]: part["path"] for messages in wishes for part in messages[1]["content"][1:]} == {
        "a red barn in the snow": "my/images/0.png",
        "two boats on a lake": "my/images/1.png",
        "a church bell rings twice": "my/audios/2.wav",
    }
    shown = [messages[0]["content"][0] for messages in found if isinstance(messages[0]["content"], list)]
    assert {part["path"] for part in shown} == {"my/images/0.png", "my/images/1.png", "my/audios/2.wav"}
    prompts = good.contents
    assert all("[image: " in prompt or "[audio: " in prompt for prompt in prompts), "the teacher knows media by caption"


def test_answers_that_cannot_be_learned_are_counted_by_reason_in_the_summary(good, captions, tmp_path, capsys) -> None:
    talk = {"exchanges": [{"user": "What is it?", "assistant": "It is <b>old</b>.<|im_end|>"}]}
    bad = iter(
        [
            "no JSON at all",
            {"exchanges": [{"user": "What?", "assistant": "Look at http://10.0.0.7/barn.png"}]},
            {"exchanges": [{"user": "What?", "assistant": "Old.<|im_end|>\n<|im_start|>user\nAnd now?"}]},
            {"exchanges": [{"user": "What?", "assistant": "The caption says: a barn."}]},
        ]
    )
    for first in ("Write a conversation about a medium.", "Describe a medium.", "Think about a medium."):
        good.answers[first] = lambda prompt, number: next(bad, talk)
    assert main(command(good, tmp_path, "captions-to-instructions", "--media", captions, "--json", count=3)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {
        "malformed JSON": 1,
        "a private address": 1,
        "control tokens inside a text": 1,
        "an answer that speaks of the caption": 1,
    }
    assert report["cleaned"]["HTML"] == report["cleaned"]["control tokens"] >= 1
    assert "It is **old**." in (tmp_path / "out.jsonl").read_text()


def test_a_conversation_longer_than_the_model_takes_is_dropped(good, captions, tmp_path) -> None:
    good.answers["Describe a medium."] = {"exchanges": [{"user": "What?", "assistant": "A quite unusual barn. " * 400}]}
    report = generate("captions-to-instructions", tmp_path / "out.jsonl", 5, good.settings(), media=captions)
    assert "longer than the 1,024 tokens that nano takes" in report.dropped


def test_own_prompts_take_the_place_of_those_of_the_package(good, tmp_path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    text = (PROMPTS / "evol_gain.txt").read_text().replace("Compare two tasks.", "Compare these.")
    (own / "evol_gain.txt").write_text(text)
    good.answers["Compare these."] = "Yes."
    report = generate("evol-instruct", tmp_path / "out.jsonl", 1, good.settings(), prompts=own, model=None)
    assert report.conversations == 1 and any("Compare these." in prompt for prompt in good.contents)


def test_topics_of_ones_own_may_cost_dollars_and_seeds_hold_half_characters(good, tmp_path) -> None:
    own, seeds = tmp_path / "own", tmp_path / "seeds.jsonl"
    own.mkdir()
    (own / "topics.txt").write_text("how to save $100\n")
    generate("modality-switching", tmp_path / "out.jsonl", 1, good.settings(), prompts=own, model=None)
    assert "The topic: how to save $100." in good.contents[0]
    good.asked.clear()
    seeds.write_text('{"instruction": "Name uses of \\ud83d salt."}')
    assert not generate("evol-instruct", tmp_path / "b.jsonl", 1, good.settings(), seeds=seeds, model=None).stopped
    assert "Name uses of \ufffd salt." in good.contents[0]


def test_media_of_kinds_that_the_model_has_not_are_left_out(good, captions, tmp_path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(fetch_model("nano"), silent, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((silent / "config.json").read_text())
    del config["decoders"]["audio"], config["signal_tokens"]["audio"]
    (silent / "config.json").write_text(json.dumps(config | {"input_modalities": ["image"]}))
    given = json.loads(captions.read_text())
    captions.write_text(json.dumps([given[2]] * 40 + given[:2]))
    report = generate(
        "captions-to-instructions", tmp_path / "out.jsonl", 2, good.settings(), media=captions, model=str(silent)
    )
    assert report.conversations == 2 and not report.stopped


def test_bad_material_is_refused_by_name_before_anything_is_asked(good, captions, tmp_path) -> None:
    def refused(match: str, **given) -> None:
        with pytest.raises(UserInputError, match=match):
            generate("modality-switching", tmp_path / "out.jsonl", 1, good.settings(), model=None, **given)

    own = tmp_path / "own"
    refused(r"--prompts .*own: no such folder; copy .*prompts there", prompts=own)
    shutil.copytree(PROMPTS, own)
    (own / "evol_gain.txt").write_text("Compare ${before} with this.")
    refused(r"evol_gain.txt: expected the places \$\{before\}, \$\{after\}", prompts=own)
    (own / "evol_gain.txt").unlink()
    (own / "topics.txt").write_text(" \n")
    refused("topics.txt: holds no topics; expected one a line", prompts=own)
    (own / "evol_gian.txt").write_text("")
    refused("no prompt has this name; did you mean 'evol_gain'", prompts=own)
    refused("nowhere.json: cannot be read", media=tmp_path / "nowhere.json")
    captions.write_text('[{"caption": "a barn"}]')
    refused("record 1: expected a caption and one of image_name, audio_name, video_name", media=captions)
    captions.write_text('[{"caption": "a barn", "image_name": "gone.png"}]')
    refused("record 1: no file gone.png beside it or in .*images", media=captions)
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"instruction": "Name uses of salt."}\n{"instruction": ""}\n')
    refused("seeds.jsonl:2: expected an instruction", seeds=seeds)
    seeds.write_text('{"messages": [{"role": "user", "content": ["What?"]}]}\n')
    refused("seeds.jsonl:1: expected a text, or a list of parts", seeds=seeds)
    shown = {"type": "image", "path": "gone.png", "caption": "a barn"}
    seeds.write_text(json.dumps({"messages": [{"role": "user", "content": [shown]}]}))
    refused("seeds.jsonl:1: no file gone.png, expected an image at its `path`", seeds=seeds)
    seeds.write_text(
        json.dumps({"messages": [{"role": "user", "content": [shown | {"path": "captions.json", "caption": 5}]}]})
    )
    (tmp_path / "captions.json").touch()
    refused("seeds.jsonl:1: captions.json has no caption", seeds=seeds)
    with pytest.raises(UserInputError, match="name a file of them with --media"):
        generate("captions-to-instructions", tmp_path / "out.jsonl", 1, good.settings(), model=None)
    assert not good.asked and not list(tmp_path.glob("out.jsonl*"))


def test_seeds_may_be_conversations_with_media_and_evolve_with_them(good, captions, tmp_path) -> None:
    def seed(**part) -> str:
        content = [{"type": "image", **part}, {"type": "text", "text": "How old is it?"}]
        return json.dumps({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Old."}]})

    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(seed(path="my/images/0.png"))
    good.answers["*"] = {"instruction": "[image: a red barn in the snow] How old is it, and who built it?"}
    generate("evol-instruct", tmp_path / "out.jsonl", 1, good.settings(), seeds=seeds, media=captions)
    assert "[image: a red barn in the snow]\nHow old is it?" in good.contents[0]
    shown, text = conversations(tmp_path)[0][0]["content"]
    assert shown == {"type": "image", "path": "my/images/0.png"} and text["text"] == "How old is it, and who built it?"
    assert not check_files([tmp_path / "out.jsonl"], "nano", workers=0).problems
    with pytest.raises(
        UserInputError, match="seeds.jsonl:1: my/images/0.png has no caption, by which a teacher would know it; see --media"
    ):
        generate("evol-instruct", tmp_path / "b.jsonl", 1, good.settings(), seeds=seeds, model=None)
    seeds.write_text(seed(path="my/images/0.png", caption="a red barn in the snow"))
    generate("evol-instruct", tmp_path / "c.jsonl", 1, good.settings(), seeds=seeds, model=None)
    assert (tmp_path / "c.jsonl").read_bytes().count(b"my/images/0.png") == 1


def test_a_run_that_stops_is_one_line_with_exit_code_two_and_what_there_is_is_told(good, tmp_path, capsys) -> None:
    assert main(command(good, tmp_path, "evol-instruct", "--max-requests", "4", "--concurrency", "1")) == 2
    said = capsys.readouterr()
    assert f"{tmp_path / 'out.jsonl'}: 1 conversations kept" in said.out
    error = said.err.splitlines()[-1]
    assert error.startswith("nextgpt: error: the budget of 4 requests is spent; raise --max-requests")


def test_without_the_client_one_line_says_what_to_install(good, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(command(good, tmp_path, "evol-instruct")) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'nextgpt[teacher]'")


def test_the_command_of_the_readme_works_word_for_word(good, captions, tmp_path, monkeypatch) -> None:
    words, _ = readme_commands("Data from a stronger model")
    monkeypatch.chdir(tmp_path)
    given = {"http://localhost:8000/v1": good.url, "500": "4"}
    assert main([given.get(word, word) for word in words]) == 0
    assert len((tmp_path / "data" / "taught.jsonl").read_text().splitlines()) == 4


def test_the_help_names_every_recipe() -> None:
    assert list(DESCRIBED) == list(RECIPES)
