"""Measures the nano model on what no part of it has seen: held-out combinations, asked for in words of their own.

`nextgpt evaluate nano` prints the table of bars. Independent classifiers look at and listen to what was made; they learned
from true media alone, and their own accuracy stands first. `ablate` zeroes each projection: then its row must fall to
chance. Rows that the model at hand cannot answer are left out, and a line says why. This module lists the rows and
holds those about answers as a whole; it learns nothing and tunes nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues.phrasings import load_phrasings, normalise
from nextgpt.train.nano.evaluation.bench import Bench, expected_content, kinds, told
from nextgpt.train.nano.evaluation.classifiers import FOLDERS
from nextgpt.train.nano.evaluation.people import (
    CHANGE_BAR,
    MIXTURE_BAR,
    REFUSAL_BAR,
    scenarios_about,
    varied,
    what_a_user_meets,
)
from nextgpt.train.nano.evaluation.rows import (
    classifier_itself,
    crossing,
    media_to_text,
    outside_the_world,
    second_turn,
    text_to_media,
    vocoder_alone,
)
from nextgpt.train.nano.evaluation.scores import Sample, Score, as_json, summary, table

__all__ = ["ROWS", "Bench", "Sample", "Score", "ablate", "ablations", "as_json", "summary", "table"]

Row = Callable[[Bench], list[Score]]

KIND_BAR = 0.99
# Rows of scenarios as people type them, with their bars.
ABOUT_BARS = {
    "mixture": MIXTURE_BAR,
    "correction": CHANGE_BAR,
    "change": CHANGE_BAR,
    "new subject": CHANGE_BAR,
    "refusal": REFUSAL_BAR,
    "limited": REFUSAL_BAR,
}
TIMES = {"text": 1.5, "image": 3.0, "audio": 4.0, "video": 8.0}  # seconds at most
REQUESTS = {
    "text": "What can you do?",
    "image": "Draw a cat on a blue background.",
    "audio": "Play a rising scale on a trumpet.",
    "video": "Make a clip of a cat spinning.",
}
LOAD_SECONDS, MOST_GIGABYTES, MOST_MEGABYTES = 10.0, 2.5, 100.0

# What an answer to each intent holds; all others are answered in words.
ANSWERS = {
    "text + image": "draw again change_background change_style change_size change_concept picture_of_heard"
    " picture_of_filmed",
    "text + audio": "play change_register change_figure change_sound sound_of_shown",
    "text + video": "film change_motion change_filmed film_of_shown film_of_heard",
    "text + image + image": "multi",
    "text + audio + audio": "play_two",
    "text + image + audio": "draw_and_play",
    "text + audio + image": "play_and_draw",
    "text + image + video": "draw_and_film",
    "text + video + audio": "film_and_play",
}
ANSWER_OF = {intent: answer for answer, intents in ANSWERS.items() for intent in intents.split()}

# Asks, loads and says what was loaded, in a process of its own: seconds, bytes of memory at most.
LOADING = """
import json, sys, time
start = time.perf_counter()
from nextgpt import NextGPTPipeline
pipeline = NextGPTPipeline.from_pretrained(sys.argv[1], device=sys.argv[2])
seconds = time.perf_counter() - start
for request in sys.argv[3:]:
    pipeline([{"role": "user", "content": request}], seed=0)
from nextgpt.hardware import peak_memory
print(json.dumps([seconds, peak_memory()]))
"""


def kind_of_answer(bench: Bench) -> list[Score]:
    """Whether an answer to free phrasings holds what it should; beside it, what a bag of words would say."""
    row = "kind of answer"
    conversations, wanted, last = [], [], []
    for rng in bench.questions("kind"):
        turns = bench.composer.conversation(rng)
        messages = []
        for turn in turns:
            messages += [
                {"role": "user", "content": bench.content(turn)},
                {"role": "assistant", "content": expected_content(turn)},
            ]
        conversations.append(messages[:-1])
        wanted.append(kinds(messages[-1]["content"]))
        last.append(turns[-1])
    one_step = {modality: {"num_inference_steps": 1} for modality in bench.media}  # made, but not looked at
    replies = bench.ask(row, conversations, **one_step)
    samples = [
        Sample(row, told(turn), {"kind": want}, {"kind": kinds(reply.message["content"])}, reply.text)
        for turn, want, reply in zip(last, wanted, replies, strict=True)
    ]
    guess = bag_of_words(load_phrasings(media=bench.media))
    right = sum(guess(told(turn)) == want for turn, want in zip(last, wanted, strict=True))
    baseline = Score(row, "a bag of words would get", right, len(last))
    return [*bench.score(row, samples, {"kind": KIND_BAR}), baseline]


def bag_of_words(phrasings: dict) -> Callable[[str], str]:
    """A naive Bayes guess of the kind of answer, learned from the training phrasings."""
    words: dict[str, Counter] = defaultdict(Counter)
    for intent, some in phrasings.items():
        for phrasing in some:
            words[ANSWER_OF.get(intent, "text")].update(normalise(phrasing.text).split())
    known = set().union(*words.values())
    totals = {kind: sum(counts.values()) + len(known) for kind, counts in words.items()}
    shares = Counter(ANSWER_OF.get(intent, "text") for intent, some in phrasings.items() for _ in some)

    def guess(text: str) -> str:
        found = [word for word in normalise(text).split() if word in known]
        chances = {
            kind: math.log(shares[kind]) + sum(math.log((words[kind][word] + 1) / totals[kind]) for word in found)
            for kind in words
        }
        return max(chances, key=chances.get)

    return guess


def speed(bench: Bench) -> list[Score]:
    """Seconds for one answer, warm, the median of nine; an answer of another kind than was asked for does not count."""
    scores = []
    for what in ("text", *bench.media):
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            reply = bench.pipeline([{"role": "user", "content": REQUESTS[what]}], seed=0)
            seconds.append(time.perf_counter() - start)
        answered = kinds(reply.message["content"])
        right = answered == ("text" if what == "text" else f"text + {what}")
        note = "" if right else f"left out: the answer holds {answered}"
        quantity = statistics.median(seconds[1:])
        scores.append(Score("time", what, bar=TIMES[what], quantity=quantity, unit="s", note=note))
    return scores


def loading(bench: Bench) -> list[Score]:
    """Load time with all imports, the most memory that one answer of each kind takes, and the weights on disk."""
    config = bench.pipeline.model.config
    requests = [REQUESTS[what] for what in ("text", *bench.media)]
    command = [sys.executable, "-c", LOADING, str(config.base_folder), bench.pipeline.device.type, *requests]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no word"])[-1]
        return [Score("load", note=f"left out: the model does not load in a process of its own ({reason})")]
    seconds, memory = json.loads(run.stdout.splitlines()[-1])
    folders = {Path(config.base_folder), *(Path(config.location(name)) for name in config.parts())}
    files = {file.resolve() for folder in folders for file in folder.rglob("*.safetensors")}
    classifiers = {bench.folder.resolve() / name for name in FOLDERS.values()}
    weights = sum(file.stat().st_size for file in files if not classifiers & set(file.parents))
    return [
        Score("load", "time", bar=LOAD_SECONDS, quantity=seconds, unit="s"),
        Score("load", "memory", bar=MOST_GIGABYTES, quantity=memory / 1e9, unit="GB"),
        Score("load", "weights", bar=MOST_MEGABYTES, quantity=weights / 1e6, unit="MB"),
    ]


def needing(row: Callable[..., list[Score]], *modalities: str, name: str, **arguments: Any) -> Row:
    """A row that is measured where these kinds of media can be; else one line that says why not."""

    def measured(bench: Bench) -> list[Score]:
        for modality in modalities:
            if reason := bench.lacks(modality):
                return [Score(name, note=f"left out: {reason}")]
        return row(bench, **arguments)

    return measured


def _rows() -> dict[str, Row]:
    classifiers = {"image": "classifier", "audio": "classifier-sounds", "video": "classifier-clips"}
    rows = {
        classifiers[each]: needing(classifier_itself, each, name=f"classifier, {each}", modality=each) for each in MODALITIES
    }
    rows["vocoder"] = needing(vocoder_alone, "audio", name="vocoder alone")
    rows["kind"] = kind_of_answer
    for each in MODALITIES:
        rows[f"text-to-{each}"] = needing(text_to_media, each, name=f"text → {each}", modality=each)
        rows[f"{each}-to-text"] = needing(media_to_text, each, name=f"{each} → text", modality=each)
    for start, end in itertools.product(MODALITIES, repeat=2):
        rows[f"{start}-to-{end}"] = needing(crossing, start, end, name=f"{start} → {end}", start=start, end=end)
    for each in MODALITIES:
        name = "second-turn" if each == "image" else f"second-turn-{each}"
        rows[name] = needing(second_turn, each, name=f"second turn, {each}", modality=each)
    for about, bar in ABOUT_BARS.items():
        rows[about.replace(" ", "-")] = needing(scenarios_about, *MODALITIES, name=about, about=about, bar=bar)
    rows["user"] = needing(what_a_user_meets, *MODALITIES, name="what a user meets")
    row = "tenth turn"
    rows["tenth-turn"] = needing(partial(what_a_user_meets, row=row, before=9), *MODALITIES, name=row)
    rows["spelling"] = needing(varied, *MODALITIES, name="spelling")
    return rows | {"outside": outside_the_world, "time": speed, "load": loading}


ROWS = _rows()


def zero(module: nn.Module) -> None:
    """Sets all parameters to zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def ablations(bench: Bench) -> list[Row]:
    """Naming with the input projection zeroed, then making with each output projection zeroed: rows that fall to chance."""
    model = bench.pipeline.model
    trials = [("input projection zeroed", model.input_projection, media_to_text, each) for each in bench.media]
    trials += [
        (f"{each} output projection zeroed", model.output_projections[each], text_to_media, each) for each in bench.media
    ]
    return [partial(_ablated, name, module, row, modality) for name, module, row, modality in trials]


def _ablated(name: str, module: nn.Module, row: Callable[..., list[Score]], modality: str, bench: Bench) -> list[Score]:
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    zero(module)
    found = row(bench, modality)
    module.load_state_dict(kept)
    return [Score(f"{score.row}, {name}", score.part, score.right, score.count) for score in found]


def ablate(bench: Bench) -> list[Score]:
    """The scores of all `ablations`."""
    return [score for row in ablations(bench) for score in row(bench)]
