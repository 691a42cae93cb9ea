"""The rows of the nano evaluation that ask for media or show them: every direction, every change, what lies outside."""

from __future__ import annotations

import random

from nextgpt.events import Reply
from nextgpt.train.nano.dialogues.composer import true_media
from nextgpt.train.nano.dialogues.turns import Shown, Turn
from nextgpt.train.nano.evaluation.bench import (
    Bench,
    expected_content,
    expected_media,
    expected_parts,
    kinds,
    made,
    told,
)
from nextgpt.train.nano.evaluation.classifiers import NONE, UNKNOWN
from nextgpt.train.nano.evaluation.reconstruct import reconstruct, vocoder_of
from nextgpt.train.nano.evaluation.scores import Sample, Score
from nextgpt.train.nano.world.things import MAIN, PLURALS, Medium, modality_of

FIT_CLASSIFIER = 0.97
MADE_BARS = {
    "image": {"concept": 0.95, "background": 0.97, "style": 0.90},
    "audio": {"instrument": 0.90, "register": 0.95, "figure": 0.90},
    "video": {"concept": 0.90, "motion": 0.95},
}
NAMED_BARS = {
    "image": {"concept": 0.95, "background": 0.97, "style": 0.90},
    "audio": {"instrument": 0.92, "register": 0.95, "figure": 0.92},
    "video": {"concept": 0.92, "motion": 0.95},
}
CROSSING_BAR, CHANGE_BAR, HUMBLE_BAR, VOCODER_BAR = 0.85, 0.90, 0.95, 0.95
OUTSIDE_TURNS = {
    "image": ("image show_outside", "outside_draw", "outside_question"),
    "audio": ("audio show_outside", "outside_play", "unplayable"),
    "video": ("video show_outside", "outside_film", "outside_motion"),
}


def classifier_itself(bench: Bench, modality: str) -> list[Score]:
    """A classifier on true media, and on media from outside the world."""
    row = f"classifier on true {PLURALS[modality]}"
    rng = random.Random(bench.seed)
    true = _true_media(bench, modality)
    true = rng.sample(true, min(len(true), 4 * bench.count))
    seen = bench.look(modality, [bench.render(medium) for medium in true])
    pairs = [(expected_parts(medium), reading) for medium, reading in zip(true, seen, strict=True)]
    scores = [
        Score(row, part, sum(expected[part] == found[part] for expected, found in pairs), len(pairs), FIT_CLASSIFIER)
        for part in NAMED_BARS[modality]
    ]
    shown = dict.fromkeys(bench.composer.setting.outside_shown(rng, modality) for _ in range(4 * bench.count))  # each once
    outside = bench.look(modality, [bench.outside(each) for each in list(shown)[: bench.count]])
    unknown = sum(reading[MAIN[modality]] == UNKNOWN for reading in outside)
    return [*scores, Score(row, UNKNOWN, unknown, len(outside))]


def _true_media(bench: Bench, modality: str) -> list[Medium]:
    """Of this split; effects are left out."""
    media = true_media(bench.composer.setting, modality)
    return [medium for medium in media if medium.split == bench.split]


def vocoder_alone(bench: Bench) -> list[Score]:
    """The vocoder on the log-mel spectrograms of true sounds: whether the classifier still knows the instrument."""
    sounds = _true_media(bench, "audio")
    sounds = random.Random(bench.seed).sample(sounds, min(len(sounds), bench.count))
    true = [bench.render(sound) for sound in sounds]
    again = reconstruct(true, None, vocoder_of(bench.pipeline.decoders["audio"]))
    heard = bench.look("audio", again)
    samples = [
        Sample("vocoder alone", sound.caption, expected_parts(sound), reading, media=[before, after])
        for sound, reading, before, after in zip(sounds, heard, true, again, strict=True)
    ]
    return bench.score("vocoder alone", samples, {"instrument": VOCODER_BAR, "register": None, "figure": None})


def text_to_media(bench: Bench, modality: str) -> list[Score]:
    """Makes what is asked for in free phrasings."""
    row = f"text → {modality}"
    turns = [bench.turn(f"{modality} ask_for", rng) for rng in bench.questions(row)]
    replies = bench.ask(row, [[{"role": "user", "content": told(turn)}] for turn in turns])
    samples = [made_sample(bench, row, turn, reply) for turn, reply in zip(turns, replies, strict=True)]
    return bench.score(row, samples, MADE_BARS[modality])


def made_sample(bench: Bench, row: str, turn: Turn, reply: Reply) -> Sample:
    """The last medium that a turn should make, beside what was made; what the user showed stands before both.

    A sound that follows from what is shown may be one of those that do not ship: then nothing stands beside it.
    """
    expected = expected_media(turn)[-1]
    modality = modality_of(expected)
    shown = [bench.render(part.medium) for part in turn.user if isinstance(part, Shown) and part.medium]
    true = [bench.render(expected)] if bench.holds(expected) else []
    media = [*shown, *true, *made(modality, reply)[:1]]
    about = next((part.medium.caption for part in turn.user if isinstance(part, Shown) and part.medium), expected.caption)
    return Sample(row, told(turn), expected_parts(expected), bench.found(modality, reply), reply.text, about, media)


def media_to_text(bench: Bench, modality: str) -> list[Score]:
    """Describes held-out media."""
    row, main = f"{modality} → text", MAIN[modality]
    turns = [bench.turn(f"{modality} describe", rng) for rng in bench.questions(row)]
    replies = bench.ask(row, [[{"role": "user", "content": bench.content(turn)}] for turn in turns])
    samples = []
    for turn, reply in zip(turns, replies, strict=True):
        expected = {part: value if value != NONE else "" for part, value in expected_parts(turn.medium).items()}
        found = bench.parser.description(reply.text, expected, main)
        shown = [bench.render(part.medium) for part in turn.user if isinstance(part, Shown)]
        samples.append(Sample(row, told(turn), expected, found, reply.text, turn.medium.caption, shown))
    return bench.score(row, samples, NAMED_BARS[modality])


def crossing(bench: Bench, start: str, end: str) -> list[Score]:
    """From an attached medium of one kind to another kind, or to a changed one of the same kind: the main thing.

    What is attached is of this split, save effects; what is to be made of another kind may be of any.
    """
    row = f"{start} → {end}"
    if start != end and row not in bench.composer.crossings.crossings:
        return [Score(row, note=f"left out: nothing in the world leads from {start} to {end}")]
    turns = [
        bench.change_shown(start, rng) if start == end else bench.composer.turn(row, rng) for rng in bench.questions(row)
    ]
    replies = bench.ask(row, [[{"role": "user", "content": bench.content(turn)}] for turn in turns])
    samples = [made_sample(bench, row, turn, reply) for turn, reply in zip(turns, replies, strict=True)]
    return bench.score(row, samples, {MAIN[end]: CROSSING_BAR})


def second_turn(bench: Bench, modality: str) -> list[Score]:
    """Makes one, then changes one thing or two of it: the change carried out and the rest kept."""
    row = f"second turn, {modality}"
    conversations, second = [], []
    for rng in bench.questions(row):
        first, change = bench.asked_and_changed(modality, rng)
        second.append(change)
        conversations.append(
            [
                {"role": "user", "content": told(first)},
                {"role": "assistant", "content": expected_content(first)},
                {"role": "user", "content": told(change)},
            ]
        )
    replies = bench.ask(row, conversations)
    samples = [made_sample(bench, row, turn, reply) for turn, reply in zip(second, replies, strict=True)]
    for sample in samples:
        right = all(sample.found.get(part) == value for part, value in sample.expected.items())
        sample.expected["all"], sample.found["all"] = "right", "right" if right else "wrong"
    return bench.score(row, samples, {"all": CHANGE_BAR})


def outside_the_world(bench: Bench) -> list[Score]:
    """Media, wishes and questions from outside the world: it says so."""
    row = "outside the world"
    asking = [kind for modality in bench.media for kind in OUTSIDE_TURNS[modality]]
    turns = [bench.composer.turn(asking[n % len(asking)], rng) for n, rng in enumerate(bench.questions(row))]
    replies = bench.ask(row, [[{"role": "user", "content": bench.content(turn)}] for turn in turns])
    refuses, samples = bench.parser.refuses, []
    for turn, reply in zip(turns, replies, strict=True):
        says_so = {"says so": "yes" if kinds(reply.message["content"]) == "text" and refuses(reply.text) else "no"}
        shown = [bench.outside(part) for part in turn.user if isinstance(part, Shown)]
        samples.append(Sample(row, told(turn), {"says so": "yes"}, says_so, reply.text, media=shown))
    return bench.score(row, samples, {"says so": HUMBLE_BAR})
