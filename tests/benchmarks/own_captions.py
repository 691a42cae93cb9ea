"""What the README's recipe does for a person: whether own captions come back, and what becomes of the old abilities.

`python tests/benchmarks/own_captions.py` makes 20 pictures with captions, trains on them with the commands of the
README's "Train your own", and prints both figures. `--data FOLDER` takes a folder of your own instead (what the README
calls `my`), `--model RUN` a model that is already trained on it. `--old N` asks N questions a row of
`nextgpt evaluate nano`, of the shipped model and of the trained one (0: leaves that out).

Each picture is asked about in the words of its data and in others, which stand in no training file: the test phrasings
of nano. A caption has come back where the greedy answer shares at least 80% of its words with it (twice the common words
over all words of both) and is nearer to no other caption of the data.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch  # noqa: E402

from nextgpt import NextGPTPipeline  # noqa: E402
from nextgpt.__main__ import main as nextgpt  # noqa: E402
from nextgpt.train.nano.dialogues.phrasings import TEST_PHRASINGS, load_phrasings  # noqa: E402
from nextgpt.train.nano.evaluation.evaluate import ROWS, Bench  # noqa: E402
from own_pictures import OWN_FILE, RUN, make_own_pictures, readme_commands  # noqa: E402

ENOUGH = 0.8
ALIKE = 0.99  # cosine of the encoder's embeddings
TALK = ("hello", "what can you do?", "thanks!")
UNSUITABLE = (
    "classifier",
    "classifier-sounds",
    "classifier-clips",
    "vocoder",
    "time",
    "load",
)  # rows of what is not trained


def words(text: str) -> Counter:
    """The words of a text, without case and punctuation."""
    return Counter(re.findall(r"[\w']+", text.lower()))


def likeness(one: str, other: str) -> float:
    """Twice the common words of two texts over all words of both."""
    first, second = words(one), words(other)
    return 2 * (first & second).total() / max(first.total() + second.total(), 1)


def came_back(answer: str, own: str, captions: list[str]) -> bool:
    """Whether an answer is a picture's own caption."""
    return likeness(answer, own) >= ENOUGH and likeness(answer, own) == max(likeness(answer, each) for each in captions)


def other_questions(most: int = 10) -> list[str]:
    """Questions about a picture that were written apart from those that are learned from."""
    phrasings = load_phrasings(TEST_PHRASINGS)
    questions = [phrasing.text for intent in ("describe", "name") for phrasing in phrasings[intent]]
    return questions[:: max(1, len(questions) // most)]


def nearly_alike(pipeline: NextGPTPipeline, paths: list[str]) -> int:
    """How many pictures the encoder can hardly tell from another one of them."""
    encoded = [
        pipeline.processor([{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "?"}]}])
        for path in paths
    ]
    features = torch.cat([pipeline.model.encode_media(e["input_ids"], image_values=e["image_values"]) for e in encoded])
    features = torch.nn.functional.normalize(features.float(), dim=-1)  # [pictures, embed_dim]
    cosines = features @ features.T - 2 * torch.eye(len(features))
    return int((cosines.amax(1) > ALIKE).sum())


def own_captions(pipeline: NextGPTPipeline, file: Path) -> None:
    """Prints, for the learned question and each of others, how many of the pictures get their own captions back."""
    asked: dict[str, list[dict]] = {}  # the first conversation about each picture
    for line in file.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        for part in messages[0]["content"]:
            if part["type"] == "image":
                asked.setdefault(str(file.parent / part["path"]), messages)
    captions = [messages[-1]["content"] for messages in asked.values()]
    learned = [" ".join(p["text"] for p in messages[0]["content"] if p["type"] == "text") for messages in asked.values()]
    print(f"nearly alike to the encoder (cosine above {ALIKE}): {nearly_alike(pipeline, list(asked))} of {len(asked)}")
    shares = []
    for name, questions in [("as learned", learned), *((each, [each] * len(asked)) for each in other_questions())]:
        content = [
            [{"type": "image", "path": path}, {"type": "text", "text": text}]
            for path, text in zip(asked, questions, strict=True)
        ]
        answers = [reply.text for reply in pipeline([[{"role": "user", "content": each}] for each in content])]
        back = [came_back(answer, own, captions) for answer, own in zip(answers, captions, strict=True)]
        shares.append(sum(back) / len(back))
        print(f"own captions, {name!r}: {sum(back)} of {len(back)}", flush=True)
        for answer, own, right in zip(answers, captions, back, strict=True):
            if not right:
                print(f"    {own!r} became {answer!r}")
    print(f"own captions, in the mean of {len(shares) - 1} other questions: {sum(shares[1:]) / (len(shares) - 1):.1%}")


def old_abilities(pipelines: dict[str, NextGPTPipeline], count: int, rows: list[str]) -> None:
    """Prints each row of `nextgpt evaluate nano` for the shipped model and the trained one, and the difference."""
    for row in rows:
        scores = [ROWS[row](Bench(pipeline, count)) for pipeline in pipelines.values()]
        for shipped, trained in zip(*scores, strict=True):
            if shipped.count:
                lost = (trained.right - shipped.right) / shipped.count
                counts = f"{shipped.right:>4} → {trained.right:>4} of {shipped.count}"
                print(f"{shipped.row + ': ' + shipped.part:<40} {counts}  {lost:+.1%}", flush=True)


def main() -> None:
    """Trains, where there is no model yet, then measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of pictures and captions (default: 20 are made)")
    parser.add_argument("--model", type=Path, help="the trained model (default: trains one)")
    parser.add_argument("--out", type=Path, help="where data and model are kept (default: nowhere)")
    parser.add_argument("--old", type=int, default=40, metavar="N", help="questions a row (default: %(default)s)")
    parser.add_argument("--part", action="append", help="only this row; repeatable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        my, model = options.data and options.data.resolve(), options.model and options.model.resolve()
        os.chdir(folder)
        if not Path("my").exists():
            Path("my").symlink_to(my) if my else make_own_pictures(Path("my"))
        began = time.perf_counter()
        for command in readme_commands("your own pictures"):
            if command[0] != "chat" and not (model and command[0] == "train") and nextgpt(command):
                sys.exit(f"nextgpt {' '.join(command)}: failed")
        print(f"the README's commands took {time.perf_counter() - began:.0f} s")
        trained = NextGPTPipeline.from_pretrained(str(model or RUN))
        own_captions(trained, Path(OWN_FILE))
        pipelines = {"shipped": NextGPTPipeline.from_pretrained("nano"), "trained": trained}
        for text in TALK:
            answers = [pipeline([{"role": "user", "content": text}]).text for pipeline in pipelines.values()]
            print(f"{text} → {answers[0]!r}, trained {answers[1]!r}", flush=True)
        if options.old:
            old_abilities(pipelines, options.old, options.part or [row for row in ROWS if row not in UNSUITABLE])


if __name__ == "__main__":
    main()
