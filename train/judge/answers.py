"""The questions, what two models answer, and how a judge gets to see it."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.hub.fingerprints import file_hash
from nextgpt.hub.fingerprints import fingerprint as weights_fingerprint
from nextgpt.hub.parts import resolve_model
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.lines import Line, check_files, read_lines
from nextgpt.train.data.markers import parts_of, words_of
from nextgpt.train.data.turns import is_empty, with_parts
from nextgpt.train.instruct_data.jobs import mark

_PLACE = re.compile("\ue000(\\d+)\ue001")  # of what is held; from the private use area


def read_questions(file: Path) -> list[list[dict]]:
    """The conversations of a JSON-lines file, each up to its last question; what answers that is left out.

    Raises:
        UserInputError: a line is no conversation, or has no question.
    """
    check_files([file])
    questions = [question_of(line) for line in read_lines([file])]
    if not questions:
        raise UserInputError(f"{file}: holds no questions")
    return questions


def question_of(line: Line) -> list[dict]:
    """A line's conversation up to its last question.

    Raises:
        UserInputError: it is no conversation, or has no question.
    """
    messages = _messages(line)
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].get("role") != "user" or is_empty(messages[-1].get("content")):
        raise UserInputError(f"{line.where}: no question; expected a conversation with a user's turn")
    return messages


def _messages(line: Line) -> list[dict]:
    """A line's messages, whose content is well-formed."""
    try:
        return with_parts(line.messages())
    except UserInputError as error:
        raise UserInputError(f"{line.where}: {error}") from None


def state_of(name: str) -> str:
    """Changes with the answers of a file or with the weights of a model in a folder.

    Raises:
        NextGPTError: there is no such file or model.
    """
    if name.endswith(".jsonl"):
        check_files([name])
        return file_hash(Path(name))
    location = resolve_model(name)
    return weights_fingerprint(Path(location)) if Path(location).is_dir() else str(location)


def answers_of(name: str, questions: Sequence[list[dict]], folder: Path, max_new_tokens: int) -> list[list[dict]]:
    """What a model says to each question, as parts with the paths of media.

    Args:
        name: a model, which answers into `folder` (what stands there is not answered again); or a JSON-lines file of the
            same questions with answers.

    Raises:
        NextGPTError: the file has other questions, or the model cannot be had or answer.
    """
    if name.endswith(".jsonl"):
        return _answers_in(Path(name), questions)
    from nextgpt.pipeline import NextGPTPipeline

    pipeline, answers = None, []
    for number, messages in enumerate(tqdm(questions, desc=f"{name} answers", unit=" questions"), start=1):
        file = folder / f"{number:05}.json"
        if (content := saved_content(file)) is None:
            pipeline = pipeline or NextGPTPipeline.from_pretrained(name)
            try:
                pipeline(messages, seed=number, max_new_tokens=max_new_tokens).save(folder, file.stem)
            except UserInputError as error:
                raise UserInputError(f"question {number}: {name} cannot answer it ({error})") from None
            except OSError as error:
                raise NextGPTError(f"{folder}: cannot be written ({error.strerror or error}); make room") from None
            content = saved_content(file) or []
        answers.append([part | {"path": str(folder / part["path"])} if "path" in part else part for part in content])
    return answers


def saved_answer(file: Path) -> dict | None:
    """What `Reply.save` wrote; None where it is not there, or was cut off by a full disk or a kill."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def saved_content(file: Path) -> list[dict] | None:
    """The content of an answer that was saved, as `saved_answer` has it."""
    saved = saved_answer(file)
    return saved and saved["message"]["content"]


def _answers_in(file: Path, questions: Sequence[list[dict]]) -> list[list[dict]]:
    check_files([file])
    lines = list(read_lines([file]))
    if len(lines) != len(questions):
        raise UserInputError(f"{file}: {len(lines)} conversations, but there are {len(questions)} questions")
    answers = []
    for line, question in zip(lines, questions, strict=True):
        *asked, answer = _messages(line) or [{}]
        if answer.get("role") != "assistant" or list(map(words_of, asked)) != list(map(words_of, question)):
            raise UserInputError(f"{line.where}: expected the question of the same line with an answer")
        answers.append(parts_of(answer.get("content")))
    return answers


class Shown:
    """Texts for a judge, in which media stand by caption, or are held to be shown.

    Args:
        kinds: that the judge takes as content parts.
    """

    def __init__(self, kinds: Sequence[str]):
        self.kinds, self.held = kinds, []

    def text(self, parts: Sequence[dict]) -> str:
        """Parts as text; a medium is a mark or stands for what is held."""
        return "\n".join(self._part(part) for part in parts)

    def conversation(self, messages: Sequence[dict]) -> str:
        """Messages as text, a turn each."""
        return "\n".join(f"{message['role']}: {self.text(parts_of(message['content']))}" for message in messages)

    def content(self, prompt: str) -> str | list[dict]:
        """A filled prompt as a message's content: text, or parts where media are shown."""
        if not self.held:
            return prompt
        pieces = _PLACE.split(prompt)  # text, number, text, number, …, text
        parts = [
            _content_part(*self.held[int(piece)]) if i % 2 else {"type": "text", "text": piece}
            for i, piece in enumerate(pieces)
        ]
        return [part for part in parts if part.get("text") != ""]

    def _part(self, part: dict) -> str:
        kind = part["type"]
        if kind == "text":
            return _PLACE.sub("", part["text"])
        if kind in self.kinds and part.get("path") and os.path.isfile(part["path"]):
            self.held.append((kind, part["path"]))
            return f"\ue000{len(self.held) - 1}\ue001"
        return in_words(part)


def in_words(part: dict) -> str:
    """A medium by its caption, as whoever cannot see it is told of it."""
    caption = part.get("caption")
    is_told = isinstance(caption, str) and caption.strip()
    return mark(part["type"], caption) if is_told else f"[{MODALITIES[part['type']].article}, no caption]"


def _content_part(kind: str, path: str) -> dict:
    """A file as OpenAI's `image_url`, and servers' `audio_url` and `video_url` after its example."""
    mime = mimetypes.guess_type(path)[0] or "application/octet-stream"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{data}"}}
