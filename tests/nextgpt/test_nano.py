"""The weights that ship: what they name, draw, play and film, and that nothing but the LLM's tokens decides it.

All is asked with held-out combinations of the nano world, in phrasings that were written apart from those it learned from,
or once with a fixed seed in the sixteen directions. The measured figures stand in the README.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.__main__ import main
from nextgpt.decoders import Audio
from nextgpt.demo.welcome import EXAMPLES, read_examples
from nextgpt.events import Reply
from nextgpt.hub.fingerprints import file_hash
from nextgpt.hub.parts import preset_folder, preset_names
from nextgpt.media import guess_modality
from nextgpt.train.nano.evaluation import evaluate
from nextgpt.train.nano.evaluation.bench import expected_media, kinds
from nextgpt.train.nano.world.things import MAIN, Clip, Picture, Sound, modality_of

pytestmark = pytest.mark.slow

if "nano" not in preset_names():
    pytest.skip("the nano weights are not in this checkout: nextgpt.train.nano.make makes them", allow_module_level=True)

FEW_STEPS = {"num_inference_steps": 12}
MOST, CHANCE = 0.5, 0.15  # chance is 1 of 120
SHOWN = ("bell", "violin", "cat", "cherries", "guitar")  # in the examples of the page

# One request for each direction: what is attached, what is said, what the classifier should find or the words should hold.
# The sounds are held-out ones: the package holds no others.
PICTURE, CLIP = Picture("trumpet", "3d", "blue"), Clip("cat", "bouncing")
SOUND, CHORD = Sound("violin", "high", "rising scale"), Sound("bell", "high", "chord")
DIRECTIONS = {
    "text → text": ([], "What is a violin?", "instrument"),
    "text → image": ([], "Draw a banana on a red background.", {"concept": "banana", "background": "red"}),
    "text → audio": ([], "Play a rising scale on a violin.", {"instrument": "violin", "figure": "rising scale"}),
    "text → video": ([], "Make a clip of a cat spinning.", {"concept": "cat", "motion": "spinning"}),
    "image → text": ([PICTURE], "What is this?", "trumpet"),
    "image → image": ([PICTURE], "The same on a red background, please.", {"concept": "trumpet", "background": "red"}),
    "image → audio": ([Picture("guitar", "3d", "blue")], "Play what this sounds like.", {"instrument": "guitar"}),
    "image → video": ([Picture("dog", "3d", "blue")], "Make it spin.", {"concept": "dog", "motion": "spinning"}),
    "audio → text": ([SOUND], "What do you hear?", {"instrument": "violin", "register": "high", "figure": "rising scale"}),
    "audio → image": ([SOUND], "Please draw a picture of what you hear.", {"concept": "violin"}),
    "audio → audio": ([SOUND], "And on a trumpet.", {"instrument": "trumpet", "figure": "rising scale"}),
    "audio → video": ([CHORD], "Film what makes this sound, bouncing.", {"concept": "bell", "motion": "bouncing"}),
    "video → text": ([CLIP], "What happens in this clip?", {"concept": "cat", "motion": "bouncing"}),
    "video → image": ([Clip("dog", "spinning")], "Turn this clip into a picture.", {"concept": "dog"}),
    "video → audio": ([Clip("bell", "bouncing")], "Play what this sounds like.", {"instrument": "bell"}),
    "video → video": ([CLIP], "Now make it spin.", {"concept": "cat", "motion": "spinning"}),
}


@pytest.fixture(scope="module")
def bench():
    return evaluate.Bench(NextGPTPipeline.from_pretrained("nano"), count=24)


def share(scores, part="concept"):
    return next(score.share for score in scores if score.part == part)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_direction(direction, bench):
    attached, words, expected = DIRECTIONS[direction]
    content = [{"type": modality_of(each), modality_of(each): bench.render(each)} for each in attached]
    reply = bench.pipeline([{"role": "user", "content": [*content, {"type": "text", "text": words}]}], seed=0)
    wanted = direction.split(" → ")[1]
    assert kinds(reply.message["content"]) == ("text" if wanted == "text" else f"text + {wanted}")
    if isinstance(expected, str):
        assert expected in reply.text
    else:
        main = MAIN[modality_of(attached[0])] if attached else ""
        found = bench.parser.description(reply.text, expected, main) if wanted == "text" else bench.found(wanted, reply)
        assert {part: found[part] for part in expected} == expected, reply.text


@pytest.mark.parametrize("number", range(8))
def test_each_example_of_the_page_is_answered(number, bench):
    example = read_examples(EXAMPLES, bench.pipeline)[number]
    media = [{"type": guess_modality(path), "path": path} for path in example["files"]]
    reply = bench.pipeline([{"role": "user", "content": [*media, {"type": "text", "text": example["text"]}]}], seed=0)
    wanted, thing = example["answer"], next(name for name in SHOWN if name in str(example))
    assert kinds(reply.message["content"]) == ("text" if wanted == "text" else f"text + {wanted}")
    assert thing in (reply.text if wanted == "text" else bench.found(wanted, reply)[MAIN[wanted]]), reply.text


def test_transformers_own_pipeline_draws_and_plays_as_the_readme_shows(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (snippet,) = [block for block in re.findall(r"(?:^(?:    .*)?\n)+", text, re.M) if "nextgpt.register()" in block]
    told = {}
    exec(textwrap.dedent(snippet), told)
    sound = Audio(told["samples"], told["rate"])
    content = [{"type": "image", "image": Image.open("banana.png")}, {"type": "audio", "audio": sound}]
    reply = Reply({"role": "assistant", "content": content})
    assert bench.found("image", reply).items() >= {"concept": "banana", "background": "blue"}.items()
    assert bench.found("audio", reply).items() >= {"instrument": "violin", "figure": "rising scale"}.items()


def test_a_mixture_keeps_its_order(bench):
    reply = bench.pipeline([{"role": "user", "content": "Play a bell, then draw it on a red background."}], seed=0)
    assert kinds(reply.message["content"]) == "text + audio + image"
    assert bench.found("audio", reply)["instrument"] == "bell"
    assert bench.found("image", reply).items() >= {"concept": "bell", "background": "red"}.items()


@pytest.mark.parametrize(
    ("first", "second", "modality", "expected"),
    [
        ("Draw a banana on a blue background.", "Now on a red background.", "image", ("banana", "red")),
        ("Play a rising scale on a piano.", "And on a violin.", "audio", ("violin", "rising scale")),
    ],
)
def test_a_second_turn_changes_one_thing_and_keeps_the_rest(first, second, modality, expected, bench):
    messages = [{"role": "user", "content": first}]
    messages += [bench.pipeline(messages, seed=0).message, {"role": "user", "content": second}]
    found = bench.found(modality, bench.pipeline(messages, seed=0))
    assert set(expected) <= set(found.values()), found


@pytest.mark.parametrize("words", ["Draw a submarine.", "What is the capital of Norway?"])
def test_what_lies_outside_its_world_is_said_so(words, bench):
    reply = bench.pipeline([{"role": "user", "content": words}], seed=0)
    assert kinds(reply.message["content"]) == "text"
    assert bench.parser.refuses(reply.text), reply.text


def test_it_names_and_draws_what_it_has_never_seen(bench):
    assert share(evaluate.ROWS["image-to-text"](bench)) >= MOST
    assert share(evaluate.ROWS["text-to-image"](bench)) >= MOST


def test_a_crossing_is_measured_though_few_sounds_ship(bench):
    row = "image → audio"
    wanted = [expected_media(bench.composer.turn(row, rng))[-1] for rng in bench.questions(row)]
    assert not all(bench.holds(sound) for sound in wanted), "only then does the report lack a true sound"
    (score,) = evaluate.ROWS["image-to-audio"](bench)
    assert (score.row, score.count) == (row, len(wanted))


def test_with_a_projection_zeroed_its_rows_fall_to_chance(bench):
    few = evaluate.Bench(bench.pipeline, count=14)
    main = [score for score in evaluate.ablate(few) if score.part in ("concept", "instrument")]
    assert len(main) == 2 * len(few.media)
    assert all(score.share <= CHANCE for score in main), main


def test_the_text_encoders_see_only_the_empty_prompt(bench, monkeypatch):
    requests = {"image": "Draw a cat.", "audio": "Play a piano.", "video": "Make a clip of a cat spinning."}
    for modality, request in requests.items():
        text_encoder = bench.pipeline.decoders[modality].pipeline.text_encoder
        monkeypatch.setattr(text_encoder, "forward", None)  # cached already: another call would fail
        reply = bench.pipeline([{"role": "user", "content": request}], **{modality: FEW_STEPS})
        assert kinds(reply.message["content"]) == f"text + {modality}"


def test_no_warning_reaches_a_program_that_draws():
    program = """import nextgpt
nextgpt.NextGPTPipeline.from_pretrained("nano")([{"role": "user", "content": "Draw a cat."}], require={"image": 1})"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and not re.search("Expected types|Warning|deprecated", done.stderr), done.stderr


def test_a_saved_adapter_names_its_base_as_the_configuration_does(bench, tmp_path):
    bench.pipeline.model.save_pretrained(tmp_path)
    adapter = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == "preset:nano/language_model"


def test_evaluate_tells_each_row_as_it_is_done(monkeypatch, capsys):
    told_before = []

    def row(bench):
        told_before.append(capsys.readouterr().err)
        return [
            evaluate.Score("time", "text", bar=1, quantity=0.5, unit="s"),
            evaluate.Score("time", note="left out: no reason"),
        ]

    monkeypatch.setattr(evaluate, "ROWS", {"one": row, "two": row})
    assert main(["evaluate", "nano", "--quick"]) == 0
    printed = capsys.readouterr()
    line = "time: text 0.50 s, left out: no reason (0 s)"
    assert told_before == ["", f"1 of 2: {line}\n"] and printed.err == f"2 of 2: {line}\n"
    assert printed.out.startswith("| what | measured |")


def test_the_files_are_those_of_the_model_card():
    folder = preset_folder("nano")
    listed = dict(re.findall(r"^\| (\S+) \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(encoding="utf-8"), re.M))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    assert files.keys() <= listed.keys()
    assert all(file_hash(path) == listed[name] for name, path in files.items())
