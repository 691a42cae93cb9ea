"""Measures a language model in words alone: right kinds of answer, right content as the answers' parser reads it."""

from __future__ import annotations

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nextgpt.train.nano.dialogues.corpus import SHOWN, Encoder, caption_parts
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.models.language_model import answer
from nextgpt.train.nano.world.things import WORDS, load_concepts, load_instruments

logger = logging.getLogger(__name__)

BATCH = 64
MODALITY_OF = {word: modality for modality, word in WORDS.items()}
_AROUND = frozenset(("style", "background"))  # words of a caption that tell nothing


def made(text: str) -> list[tuple[str, frozenset[str]]]:
    """The media of an answer in words, in order: the kind of each, and the words that tell what it is."""
    found = []
    for match in SHOWN.finditer(text):
        words = frozenset(re.findall(r"[^\s,]+", match["caption"].lower())) - _AROUND
        found.append((MODALITY_OF[match["word"]], words))
    return found


def expected_media(message: dict) -> list[tuple[str, frozenset[str]]]:
    """The same of a message."""
    media = [part for part in message["content"] if part["type"] != "text"]
    return [
        (part["type"], frozenset(" ".join(caption_parts(part["type"], part["caption"]).values()).split())) for part in media
    ]


def fault(parser: AnswerParser, expected: dict, checks: list[dict], given: str) -> tuple[str, str]:
    """What is wrong with the kinds of an answer, and with its content; empty if nothing is."""
    wanted, found = expected_media(expected), made(given)
    if [kind for kind, _ in wanted] != [kind for kind, _ in found]:
        kinds = (" + ".join(kind for kind, _ in media) or "nothing" for media in (found, wanted))
        return ("made {}, expected {}".format(*kinds),) * 2
    for (_, words), (_, told) in zip(wanted, found, strict=True):
        if words != told:
            return "", f"made {' '.join(sorted(told))}, expected {' '.join(sorted(words))}"
    text = " ".join(SHOWN.sub(" ", given).split())
    return "", next(filter(None, (parser.misses(text, told) for told in checks)), "")


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterable[dict],
    world: Path,
    readings: nn.Linear | None = None,
) -> dict[str, dict[str, float]]:
    """Shares of right kinds and of right contents of the last answers of conversations.

    By what they are about, and of all, in three ways: media as words; what the user shows as soft positions (`soft`);
    what is made as runs, read by `readings` (`runs`). Conversations whose answer cannot be checked are left out.

    Args:
        conversations: as `dialogues.composer.caption_line` has them.
    """
    concepts = load_concepts(world)
    encoder, parser = Encoder(tokenizer), AnswerParser.of_world(concepts, load_instruments(world, concepts))
    ways = {"words": (False, True), "soft": (True, True)} | ({"runs": (False, False)} if readings is not None else {})
    cases = []
    for row in conversations:
        *context, expected = row["messages"]
        checks, intent = row.get("checks", []), row["intents"][-1]
        if not checks and not expected_media(expected):
            continue
        about = intent.removeprefix("scenario ") if intent.startswith("scenario") else "phrasings"
        shows = any("caption" in part for m in context if m["role"] == "user" for part in m["content"])
        for way, (soft, in_words) in ways.items():
            if way == "words" or (way == "soft" and shows) or (way == "runs" and expected_media(expected)):
                prompt = encoder(context, soft, random.Random(len(cases)), in_words)
                cases.append((way, about, expected, checks, prompt))
    cases.sort(key=lambda case: len(case[-1].tokens))
    results: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        answers = answer(model, tokenizer, [case[-1] for case in part], readings=readings)
        for (way, about, expected, checks, prompt), given in zip(part, answers, strict=True):
            kind, content = fault(parser, expected, checks, given)
            for row in (way, f"{way}, {about}"):
                results[row].append((not kind, not content))
            if content:
                logger.debug("%s: %s\n  %s\n  %s", way, content, tokenizer.decode(prompt.tokens)[-300:], given)
    return {
        row: {"kind": _share(kind for kind, _ in some), "content": _share(right for _, right in some), "of": len(some)}
        for row, some in sorted(results.items())
    }


def _share(right) -> float:
    right = list(right)
    return round(sum(right) / len(right), 4)
