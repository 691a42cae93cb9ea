"""How well models use a long context: their loss by position, and whether they find a picture that was shown long ago.

All models get the same conversations, whatever limit each of them names: one whose positions are not scaled shows what plain
extrapolation gives. Everything asked about is of the held-out split, in words that no model has learned from.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from nextgpt.context.settings import describe_rope
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.processing_nextgpt import IGNORED_LABEL
from nextgpt.train.nano.context.conversations import LongConversations, Needle, check_length
from nextgpt.train.nano.dialogues.turns import Shown, Turn
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.evaluation.bench import expected_content
from nextgpt.train.nano.evaluation.scores import Score

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BINS = 8
BATCH = 10
ANSWER_TOKENS = 24


@dataclass
class Losses:
    """The loss on the assistant's tokens between two positions.

    Args:
        start, stop: of the positions.
        values: the mean of each conversation that has any there.
        tokens: in all of them.
    """

    start: int
    stop: int
    values: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Of the conversations' means; NaN without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def margin(self) -> float:
        """Half of its 95% interval; NaN where there are too few for one."""
        return 1.96 * statistics.stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan


@dataclass
class Measured:
    """One model: its losses by position, and how many needles it found by depth."""

    model: str
    positions: str
    losses: list[Losses]
    needles: list[Score]


@dataclass
class ContextReport:
    """What was measured, of all models.

    Args:
        length: of the conversations, in tokens.
        chance: share of right answers of who names one of the things in the conversation's pictures; of who names any.
    """

    length: int
    described: bool
    chance: tuple[float, float]
    models: list[Measured]

    def table(self) -> str:
        """As Markdown."""
        names = [f"{each.model} ({each.positions})" for each in self.models]
        lines = [f"| {self.length:,} tokens | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for rows in zip(*(each.losses for each in self.models), strict=True):
            figures = [f"{row.mean:.3f} ± {row.margin:.3f}" if row.values else "–" for row in rows]
            lines.append(f"| loss, positions {rows[0].start:,} – {rows[0].stop:,} | {' | '.join(figures)} |")
        for rows in zip(*(each.needles for each in self.models), strict=True):
            figures = []
            for row in rows:
                low, high = row.interval
                figures.append(f"{100 * row.share:.0f}% ({row.right} of {row.count}, {100 * low:.0f} – {100 * high:.0f}%)")
            lines.append(f"| {rows[0].row} {rows[0].part} | {' | '.join(figures)} |")
        shown, known = self.chance
        chance = (
            f"{100 * shown:.1f}% by naming a thing of the conversation's pictures, {100 * known:.1f}% by naming any thing"
        )
        return "\n".join([*lines, "", f"Chance: {chance}."])

    def as_json(self) -> str:
        """The same as one JSON object."""
        models = [
            {
                "model": each.model,
                "positions": each.positions,
                "losses": [vars(row) | {"mean": row.mean, "margin": row.margin} for row in each.losses],
                "needles": [
                    {"depth": row.part, "right": row.right, "count": row.count, "interval": row.interval}
                    for row in each.needles
                ],
            }
            for each in self.models
        ]
        given = {"length": self.length, "described": self.described, "chance": self.chance}
        return json.dumps(given | {"models": models}, indent=1)


def evaluate_context(
    models: Sequence[str],
    length: int,
    *,
    count: int = 100,
    described: bool = False,
    seed: int = 0,
    **loading: Any,
) -> ContextReport:
    """Measures models on the same long conversations.

    Args:
        models: presets, folders or repositories of nano's kind.
        length: of the conversations, in tokens.
        count: needles at each depth, and conversations for the loss.
        described: the assistant has said what the picture shows when it was shown.
        loading: for `NextGPTPipeline.from_pretrained`.

    Raises:
        UserInputError: `length` leaves no room for a picture and a question.
        ModelLoadError: there is no such model.
    """
    check_length(length)
    made: tuple[list[list[dict]], dict[float, list[tuple[list[dict], Needle]]]] | None = None
    measured, chance = [], (0.0, 0.0)
    for name in models:
        pipeline = NextGPTPipeline.from_pretrained(name, **loading)
        if made is None:
            long = LongConversations(pipeline.processor, "heldout")
            made = _conversations(long, length, count, seed), _needles(long, length, count, described, seed)
            needles = [needle for of in made[1].values() for _, needle in of]
            parser = AnswerParser.of_world(long.concepts, {})
            chance = (statistics.fmean(1 / needle.others for needle in needles), 1 / len(long.concepts))
        rope = pipeline.model.config.rope_parameters
        losses = loss_by_position(pipeline, made[0], length)
        scores = [_score(pipeline, f"{depth:.0%}", of, parser) for depth, of in _told(name, made[1])]
        measured.append(Measured(name, describe_rope(rope) if rope else "not scaled", losses, scores))
        pipeline.close()
    return ContextReport(length, described, chance, measured)


def _conversations(long: LongConversations, length: int, count: int, seed: int) -> list[list[dict]]:
    """Conversations without a needle, to read."""
    found = []
    for number in range(count):
        pieces = long.talk(random.Random(f"{seed}/loss/{number}"), length - long.opening)
        found.append(_messages(long, [turn for piece in pieces for turn in piece]))
    return found


def _needles(
    long: LongConversations, length: int, count: int, described: bool, seed: int
) -> dict[float, list[tuple[list[dict], Needle]]]:
    """Depth → conversations that end with the question, and what is asked."""
    found = {}
    for depth in DEPTHS:
        needles = [
            long.needle(random.Random(f"{seed}/needle/{number}"), length, depth, described) for number in range(count)
        ]
        found[depth] = [(_messages(long, needle.turns)[:-1], needle) for needle in needles]
    return found


def _messages(long: LongConversations, turns: Sequence[Turn]) -> list[dict]:
    """Turns as chat messages, with the media that are shown."""
    messages = []
    for turn in turns:
        user = [
            {"type": part.modality, part.modality: long.render(part)}
            if isinstance(part, Shown)
            else {"type": "text", "text": part}
            for part in turn.user
        ]
        answer = [
            part | ({"text": f" {part['text']}"} if i and "text" in part else {})
            for i, part in enumerate(expected_content(turn))
        ]
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages


def _told(name: str, needles: dict[float, list]) -> Iterator[tuple[float, list]]:
    """Depth by depth, told in a terminal."""
    yield from tqdm(needles.items(), desc=f"{name}: needles", disable=None, leave=False)


@torch.no_grad()
def loss_by_position(pipeline: NextGPTPipeline, conversations: Sequence[list[dict]], length: int) -> list[Losses]:
    """The next-token loss on what the assistant says, in `BINS` equal parts of `length` positions."""
    edges = [round(length * part / BINS) for part in range(BINS + 1)]
    found = [Losses(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
    model, processor = pipeline.model, pipeline.processor
    for conversation in tqdm(conversations, desc="loss by position", disable=None, leave=False):
        inputs = processor([conversation], add_generation_prompt=False, return_labels=True)
        labels = inputs.pop("labels").to(pipeline.device)
        logits = model(**{name: tensor.to(pipeline.device) for name, tensor in inputs.items()}, use_cache=False).logits
        losses = F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="none", ignore_index=IGNORED_LABEL)
        positions = (labels[0, 1:] != IGNORED_LABEL).nonzero().flatten() + 1
        for part in found:
            within = positions[(positions >= part.start) & (positions < part.stop)]
            if len(within):
                part.values.append(float(losses[within - 1].mean()))
                part.tokens += len(within)
    return found


@torch.no_grad()
def _score(
    pipeline: NextGPTPipeline, depth: str, needles: Sequence[tuple[list[dict], Needle]], parser: AnswerParser
) -> Score:
    """How many questions about a picture at one depth are answered with the thing that it shows."""
    model, processor, right = pipeline.model, pipeline.processor, 0
    for start in range(0, len(needles), BATCH):
        some = needles[start : start + BATCH]
        inputs = processor([messages for messages, _ in some])  # the limit that a model names does not count here
        inputs = {name: tensor.to(pipeline.device) for name, tensor in inputs.items()}
        output = model.generate_interleaved(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        for tokens, (_, needle) in zip(output.sequences, some, strict=True):
            text = " ".join(part["text"] for part in processor.decode_parts(tokens) if part["type"] == "text")
            right += parser.says(text, [needle.picture.concept])
    return Score("picture found at depth", depth, right, len(needles))
