"""The evaluation's own arithmetic, that it asks of held-out things in held-out words only, and its rows, end to end.

In place of a model and classifiers stand an assistant that answers as it should and classifiers that know the true media.
"""

import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from nextgpt import NextGPTPipeline
from nextgpt.decoders.vocoder import GriffinLimVocoder, GriffinLimVocoderConfig
from nextgpt.events import Reply
from nextgpt.media import load_media
from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues import composer as dialogues
from nextgpt.train.nano.dialogues.composer import load_composer
from nextgpt.train.nano.dialogues.phrasings import INTENT_SLOTS, load_phrasings
from nextgpt.train.nano.dialogues.scenarios import Filler
from nextgpt.train.nano.dialogues.turns import Shown
from nextgpt.train.nano.evaluation import people
from nextgpt.train.nano.evaluation.bench import (
    AS_TENSOR,
    Bench,
    expected_content,
    expected_media,
    expected_parts,
    kinds,
    told,
)
from nextgpt.train.nano.evaluation.classifiers import UNKNOWN
from nextgpt.train.nano.evaluation.evaluate import ANSWER_OF, ROWS, Score, ablate, bag_of_words, table
from nextgpt.train.nano.evaluation.report import write_report
from nextgpt.train.nano.evaluation.scores import effective_count
from nextgpt.train.nano.world.media_files import MAKERS, outside_files, write
from nextgpt.train.nano.world.pictures import CONCEPTS, World
from nextgpt.train.nano.world.player import SAMPLES
from nextgpt.train.nano.world.sounds import SoundWorld, load_sounds
from nextgpt.train.nano.world.things import MAIN, Picture, modality_of, path_of
from tiny_models import save_tiny_any_to_any


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small world in which everything looks and sounds different: stripes as artwork, noise as sounds."""
    folder = tmp_path_factory.mktemp("nano") / "world"
    folder.mkdir()
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    (folder / "sounds.json").write_text(json.dumps(load_sounds()), encoding="utf-8")
    random_numbers = np.random.default_rng(0)
    np.savez(folder / "art.npz", art=random_numbers.integers(0, 255, (len(concepts), 3, 64, 64, 4), np.uint8))
    np.savez(folder / "outside.npz", art=random_numbers.integers(0, 255, (40, 64, 64, 4), np.uint8))
    count = len(SoundWorld(folder).combinations)
    np.save(folder / "sounds.npy", random_numbers.integers(-9000, 9000, (count, SAMPLES), np.int16))
    return folder


@pytest.fixture(scope="module")
def composer(folder):
    return load_composer(folder, "heldout", phrasings=dialogues.DATA)


class Oracle:
    """Stands for assistant and classifiers: answers as the turns say, and knows true media when it meets them again."""

    def __init__(self, bench: Bench):
        self.bench, self.turns, self.known, self.asked = bench, [], {}, []
        bench.ask = self.answer
        bench.classifiers = {modality: SimpleNamespace(read=self.read) for modality in MODALITIES}
        self._render, bench.render = bench.render, self.render
        for asking, names in ((bench, ("turn", "change_shown")), (bench.composer, ("turn", "change_shown", "conversation"))):
            for name in names:
                setattr(asking, name, self._listening(getattr(asking, name)))

    def _listening(self, make):
        def listening(*arguments):
            before = len(self.turns)
            turns = make(*arguments)
            self.turns[before:] = [turns[-1] if isinstance(turns, list) else turns]  # not what was asked on the way
            return turns

        return listening

    def listen_to(self, fill):
        """Hears what scenarios ask for."""

        def listening(*arguments):
            self.asked.append(fill(*arguments))
            return self.asked[-1]

        listening.answer = fill.answer
        return listening

    def answer(self, row, conversations, **_):
        return [self._reply(messages[-1]["content"]) for messages in conversations]

    def _reply(self, asked):
        words = asked if isinstance(asked, str) else " ".join(part["text"] for part in asked if part["type"] == "text")
        for scenario in self.asked:
            if words == " ".join(part["text"] for part in scenario.messages[-1]["content"] if part["type"] == "text"):
                return self._reply_to_scenario(scenario)
        while told(turn := self.turns.pop(0)) != words:
            continue
        content = expected_content(turn)
        for part, medium in zip([p for p in content if p["type"] != "text"], expected_media(turn), strict=True):
            part[part["type"]] = self.bench.render(medium)
        return Reply({"role": "assistant", "content": content})

    def _reply_to_scenario(self, scenario):
        content = []
        for part in scenario.wanted:
            if part.kind == "text":
                content.append({"type": "text", "text": in_words(self.bench.composer.setting, part.told)})
            else:
                medium = Filler(self.bench.composer).default(part)
                content.append({"type": part.kind, part.kind: self.bench.render(medium)})
        return Reply({"role": "assistant", "content": content})

    def render(self, medium):
        rendered, modality = self._render(medium), modality_of(medium)
        self.known[AS_TENSOR[modality](rendered).numpy().tobytes()] = expected_parts(medium)
        return rendered

    def read(self, media):
        return [self.known.get(each.numpy().tobytes(), {MAIN[m]: UNKNOWN for m in MAIN}) for each in media]


def in_words(setting, told):
    """What passes the checks of a scenario's words."""
    said = []
    if "names" in told:
        known = {**setting.instruments, **setting.concepts}
        said.append(f"This is {' and '.join(known[name].indefinite for name in told['names'])}.")
    for part, value in told.get("tells", {}).items():
        said.append({"background": f"On {value}.", "figure": f"A {value}."}.get(part, f"It is {value}."))
    if "yes" in told:
        said.append("Yes." if told["yes"] else "No.")
    words = {
        "refuses": "I can't do that.",
        "abilities": "I can draw pictures, play sounds and make clips.",
        "chats": "Hello!",
    }
    return " ".join([*said, *(text for check, text in words.items() if check in told)])


@pytest.fixture
def bench(folder, monkeypatch):
    config = SimpleNamespace(input_modalities=list(MODALITIES))
    vocoder = GriffinLimVocoder(GriffinLimVocoderConfig(rounds=1))
    decoders = {modality: SimpleNamespace(pipeline=SimpleNamespace(vocoder=vocoder)) for modality in MODALITIES}
    pipeline = SimpleNamespace(model=SimpleNamespace(config=config), decoders=decoders)
    bench = Bench(pipeline, count=6, folder=folder.parent)
    bench.classifiers = dict.fromkeys(MODALITIES)
    oracle = Oracle(bench)
    monkeypatch.setattr(people, "Filler", lambda *arguments: oracle.listen_to(Filler(*arguments)))
    return bench


MEASURED = [row for row in ROWS if row not in ("time", "load", "vocoder")]


@pytest.mark.parametrize("row", MEASURED)
def test_who_answers_as_it_should_gets_full_marks(bench, row):
    scores = ROWS[row](bench)
    assert scores and not any(score.note for score in scores)
    for score in scores:
        if score.bar is not None or score.part == UNKNOWN:
            assert (score.share, score.count > 0) == (1.0, True), (score, bench.samples)


def test_who_answers_in_words_alone_gets_none(bench):
    bench.ask = lambda row, conversations, **_: [
        Reply({"role": "assistant", "content": [{"type": "text", "text": "Here is a cat."}]}) for _ in conversations
    ]
    for row in ("text-to-audio", "video-to-text", "image-to-video", "second-turn-audio", "outside"):
        assert all(score.right == 0 and score.count == 6 for score in ROWS[row](bench))


def test_rows_that_cannot_be_measured_say_why(bench):
    pictures_alone = Bench(bench.pipeline, count=6, folder=bench.folder)
    bench.pipeline.model.config.input_modalities = ["image"]
    pictures_alone.classifiers = {"image": bench.classifiers["image"], "audio": bench.classifiers["audio"]}
    assert pictures_alone.media == ("image",)
    assert "the model takes no audio" in ROWS["audio-to-text"](pictures_alone)[0].note
    assert "the model takes no video" in table(ROWS["image-to-video"](pictures_alone))
    Oracle(pictures_alone)
    assert ROWS["text-to-image"](pictures_alone)[0].right == 6


def test_media_files_are_read_as_they_were_and_named_in_the_dialogues(folder, tmp_path):
    outside = outside_files(folder, "dev", MODALITIES)
    for modality, make in MAKERS.items():
        media = dict(itertools.islice(make(World(folder), "dev"), 3)) | dict(list(make(World(folder), "dev"))[-1:])
        assert [path in outside for path in media] == [False, False, False, True]
        for path, medium in media.items():
            write(medium, tmp_path / path)
            read = load_media(modality, tmp_path / path)
            for one, other in zip(*((m,) if modality == "image" else m for m in (read, medium)), strict=True):
                assert np.allclose(np.asarray(one, float), np.asarray(other, float), atol=1e-4)
    shown = load_composer(folder, "dev", outside).clips.sample(random.Random(0))
    assert path_of(shown) in dict(MAKERS["video"](World(folder), "dev"))


@pytest.mark.slow
def test_time_memory_and_weights_are_measured(bench, tmp_path):
    folder = save_tiny_any_to_any(tmp_path, ["image"])
    tensors = load_file(folder / "model.safetensors")
    tensors["signal_rows.output"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = len(AutoTokenizer.from_pretrained(tmp_path / "language_model"))
    GenerationConfig(eos_token_id=list(range(vocabulary)), pad_token_id=0).save_pretrained(folder)  # any token is the last
    bench.pipeline, bench.media = NextGPTPipeline.from_pretrained(folder), ("image",)
    ballast = np.ones(250_000_000)  # 2 GB of this process, not of the model
    figures = {(score.row, score.part): score.quantity for score in (*ROWS["time"](bench), *ROWS["load"](bench))}
    del ballast
    assert list(figures) == [("time", "text"), ("time", "image"), *(("load", of) for of in ("time", "memory", "weights"))]
    assert all(figures.values()) and 0.1 < figures["load", "memory"] < 2  # GB


def test_the_vocoder_is_measured_alone(bench):
    assert [score.part for score in ROWS["vocoder"](bench)] == ["instrument", "register", "figure"]
    assert len(bench.samples[0].media) == 2


def test_ablation_zeroes_one_projection_at_a_time_and_puts_it_back(bench):
    model = bench.pipeline.model
    model.input_projection = torch.nn.Linear(2, 2)
    model.output_projections = torch.nn.ModuleDict({modality: torch.nn.Linear(2, 2) for modality in MODALITIES})
    modules = [model.input_projection, *model.output_projections.values()]
    kept, zeroed, answer = [module.weight.clone() for module in modules], [], bench.ask

    def ask(row, conversations, **_):
        zeroed.append([name for name, module in zip(("in", *MODALITIES), modules, strict=True) if not module.weight.any()])
        return answer(row, conversations)

    bench.ask = ask
    rows = {score.row for score in ablate(bench)}
    assert zeroed == [["in"], ["in"], ["in"], ["image"], ["audio"], ["video"]]
    assert "text → video, video output projection zeroed" in rows and len(rows) == 6
    assert all(torch.equal(module.weight, weight) for module, weight in zip(modules, kept, strict=True))


def test_the_report_shows_pictures_and_plays_sounds_and_clips(bench, tmp_path):
    scores = [score for row in ("text-to-image", "text-to-audio", "text-to-video") for score in ROWS[row](bench)]
    page = write_report(tmp_path, scores, bench.samples).read_text(encoding="utf-8")
    for player in ("<img alt='' src='data:image/png", "<audio controls preload=none src='data:audio/wav", "<video controls"):
        assert page.count(player) == 12  # the true one and the one made


def test_the_interval_is_wilsons():
    low, high = Score("x", right=95, count=100).interval  # computed by hand from Wilson's formula
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert Score("x", right=0, count=10).interval[0] == 0.0
    assert Score("x", right=96, count=100, bar=0.95).met and not Score("x", right=94, count=100, bar=0.95).met
    assert Score("time", quantity=2.0, bar=1.5, unit="s").met is False
    assert Score("x", note="left out: no ears", bar=0.9).met is None
    assert "| x: y | 50.0% (1 of 2) | 9.5 – 90.5% | 40% | met |" in table([Score("x", "y", 1, 2, 0.4)])


def test_every_question_is_about_held_out_media(bench):
    for modality in MODALITIES:
        for number in range(40):
            rng = random.Random(number)
            turn = bench.turn(f"{modality} {('ask_for', 'describe')[number % 2]}", rng)
            changed = bench.turn("change", rng, turn.medium)
            assert turn.medium.split == changed.medium.split == "heldout"
        turn = bench.change_shown(modality, random.Random(0))
        (shown,) = [part.medium for part in turn.user if isinstance(part, Shown)]
        assert shown.split == turn.medium.split == "heldout"
    for number in range(200):
        turns = bench.composer.conversation(random.Random(number))
        shown = [part.medium for turn in turns for part in turn.user if isinstance(part, Shown) and part.medium]
        assert all(medium.split == "heldout" or not getattr(medium, "register", "pitched") for medium in shown)


def test_a_swap_names_the_old_thing_and_the_new_one(composer):
    old = Picture("cat", "3d", "white", "large")
    swaps = [composer.turn("change", random.Random(number), old) for number in range(300)]
    words = [told(turn).lower() for turn in swaps if turn.intent == "change_concept"]
    assert any(word.startswith(("swap", "turn")) and "cat" in word for word in words)


def test_the_bag_of_words_is_no_fool():
    guess = bag_of_words(load_phrasings())
    assert guess("please draw a picture of it") == "text + image"
    assert guess("play it lower") == "text + audio"
    assert guess("make a video of it bouncing") == "text + video"
    assert guess("what is this?") == "text"
    assert set(ANSWER_OF) < set(INTENT_SLOTS)


def test_the_test_phrasings_agree_on_what_an_answer_holds():
    """Who wrote them said of each, apart from any code, which kinds of media its answer holds."""
    for file in dialogues.DATA.glob("*.jsonl"):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            assert {"text", *row["kind"].split(" + ")} == {"text", *ANSWER_OF.get(row["intent"], "text").split(" + ")}, row


def test_an_answer_is_known_by_its_parts():
    text, image, audio = {"type": "text", "text": "Here."}, {"type": "image"}, {"type": "audio"}
    assert kinds([text]) == "text"
    assert kinds([text, image, text, audio]) == "text + image + audio"


def test_questions_about_the_same_medium_do_not_count_as_independent():
    right = [True] * 60 + [False] * 40
    assert effective_count(right, [str(number) for number in range(100)]) is None
    assert effective_count(right, [""] * 100) is None, "each is about something of its own"
    twins = [str(number // 2) for number in range(100)]  # each asked twice, and answered alike
    assert effective_count(right, twins) == pytest.approx(49)
    crossed = [str(number % 50) for number in range(100)]  # asked twice, and answered anyhow
    assert 80 < effective_count([bool(n) for n in np.random.default_rng(0).integers(0, 2, 100)], crossed) <= 100
    assert effective_count([True] * 100, twins) == 50
    alone, shared = Score("row", right=60, count=100), Score("row", right=60, count=100, effective=49.0)
    width = [high - low for low, high in (alone.interval, shared.interval)]
    assert width[1] / width[0] == pytest.approx((100 / 49) ** 0.5, rel=0.05)
