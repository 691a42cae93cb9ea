"""What an empty conversation shows: which model this is, what it can do and knows, and examples to begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nextgpt.media import guess_modality
from nextgpt.media.text import listed
from nextgpt.pipeline import NextGPTPipeline

EXAMPLES = Path(__file__).parent / "examples"


def read_examples(folder: Path, pipeline: NextGPTPipeline) -> list[dict]:
    """The examples of `examples.json` that this model can do: `text`, `files` (in the folder) and `answer`, a kind.

    A `label` that says the direction is added.
    """
    examples = []
    for example in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        files = [str(folder / name) for name in example["files"]]
        kinds = [guess_modality(path) for path in files]
        if set(kinds) <= set(pipeline.input_modalities) and example["answer"] in pipeline.output_modalities:
            label = f"{' + '.join(kinds) or 'text'} → {example['answer']}: {example['text']}"
            examples.append(example | {"files": files, "label": label})
    return examples


def as_cards(examples: Sequence[dict]) -> list[dict]:
    """The examples as Gradio's chatbot shows them."""
    return [{"text": each["text"], "display_text": each["label"], "files": list(each["files"])} for each in examples]


def abilities(pipeline: NextGPTPipeline) -> str:
    """What the model takes and gives, as the predicate of a sentence."""
    return f"takes {listed(pipeline.input_modalities)} and answers with {listed(pipeline.output_modalities)}"


def shown_name(model: str) -> str:
    """What visitors are told: of a folder only its own name."""
    return Path(model).resolve().name if model and Path(model).is_dir() else model


def known_as_html(known: dict[str, list[str]]) -> str:
    """The lists of what a model knows."""
    rows = (
        f"<dt>{escape(heading.capitalize())} ({len(names)})</dt><dd>{escape(', '.join(names))}</dd>"
        for heading, names in known.items()
    )
    return f'<dl class="known">{"".join(rows)}</dl>'
