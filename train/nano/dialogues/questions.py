"""Asks for what is said of a picture, a sound or a clip in other words too, so that a caption belongs to what is shown.

A model that always meets a picture with the same question learns to answer the question.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from nextgpt.signals import MODALITIES
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.nano.dialogues.phrasings import load_phrasings, roughen

ASKING = {"image": "describe", "audio": "hear_describe", "video": "watch_describe"}


def ask_in_other_words(file: str | Path, count: int, seed: int = 0) -> int:
    """Adds to each question about one piece of media that is answered in words the same in `count` other phrasings.

    Args:
        file: JSON-lines file of chat messages; it is replaced. Conversations of more turns stay as they are.

    Returns:
        The number of conversations added.
    """
    file, rng, phrasings = Path(file), random.Random(seed), load_phrasings()
    texts = {kind: [each.text for each in phrasings[intent]] for kind, intent in ASKING.items()}
    given = list(dict.fromkeys(file.read_bytes().splitlines(keepends=True)))
    lines: dict[bytes, None] = {}  # each once, in order
    for line in given:
        lines[line] = None
        messages = json.loads(line)["messages"]
        medium = _single_medium(messages)
        if medium is None:
            continue
        for text in rng.sample(texts[medium["type"]], min(count, len(texts[medium["type"]]))):
            content = [medium, {"type": "text", "text": roughen(text, rng)}]
            lines[json_line({"messages": [{"role": "user", "content": content}, messages[-1]]})] = None
    with whole_file(file) as beside:
        beside.write_bytes(b"".join(lines))
    return len(lines) - len(given)


def _single_medium(messages: list[dict]) -> dict | None:
    """The medium of a conversation that asks about one and is answered in words; None of any other."""
    if [message["role"] for message in messages] != ["user", "assistant"]:
        return None
    asked, answered = (message["content"] for message in messages)
    media = [part for part in asked if part["type"] in MODALITIES] if isinstance(asked, list) else []
    said = isinstance(answered, str) or all(part["type"] == "text" for part in answered)
    return media[0] if len(media) == 1 and said else None
