"""The same conversations for programs: documented endpoints for `gradio_client`, with typed parameters.

They call what the page's buttons call.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from nextgpt.demo.answers import AnswerQueue
from nextgpt.demo.conversations import Conversation, Store, Turn
from nextgpt.demo.options import answer_options
from nextgpt.errors import NextGPTError, UserInputError

POLL = 0.05  # seconds between two looks at an answer under way


def add_endpoints(answers: AnswerQueue, store: Store) -> None:
    """Adds every public method of `Endpoints` to the page that is being built."""
    for name, method in inspect.getmembers(Endpoints(answers, store), inspect.ismethod):
        if not name.startswith("_"):
            gr.api(method, api_name=name)


class Endpoints:
    """One endpoint a public method: its name, its type hints and its docstring are what the API page shows."""

    def __init__(self, answers: AnswerQueue, store: Store):
        self._answers, self._store = answers, store

    def new_conversation(self) -> str:
        """Begins a conversation and returns its id, which is a secret: whoever has it can read the conversation."""
        return self._store.create().id

    async def ask(
        self,
        conversation: str,
        text: str,
        files: list[gr.FileData] = [],  # noqa: B006 – Gradio shows the default, nobody changes it
        answer_with: list[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        seed: int | None = None,
        media: dict[str, dict[str, float]] = {},  # noqa: B006
    ) -> AsyncIterator[dict]:
        """Asks, and streams the assistant's message in the chat format, whole at the end; media are files.

        `files` are pictures, sounds and clips (`handle_file(path)`); `answer_with` names kinds, e.g. ["text", "image"]; if
        the model calls for another, the last message names it in `switched_off`; temperature 0 is greedy; `media` holds
        options of the decoders, e.g. {"image": {"num_inference_steps": 20}}.
        """
        with refusals():
            known = self._store.get(conversation)
            pipeline = self._answers.pipeline
            options = answer_options(pipeline, answer_with, temperature, top_p, max_new_tokens, seed, media)
            paths = [_uploaded(file) for file in files]
            turn = await asyncio.to_thread(self._answers.ask, known, text, paths, options)
        async for message in self._follow(turn):
            yield message

    async def retry(self, conversation: str) -> AsyncIterator[dict]:
        """Answers the last question again with another seed; streams like `ask`."""
        with refusals():
            known = self._with_turns(conversation)
            options = known.turns[-1].options | {"seed": None}
            turn = await asyncio.to_thread(self._answers.retry, known, len(known.turns) - 1, options)
        async for message in self._follow(turn):
            yield message

    def undo(self, conversation: str) -> list[dict]:
        """Takes back the last question with its answer; returns the messages that are left."""
        with refusals():
            known = self._with_turns(conversation)
            self._answers.undo(known, len(known.turns) - 1)
        return [_as_message(message) for message in known.messages()]

    def stop(self, conversation: str) -> None:
        """Stops the answer within one token or one diffusion step; a question that still waits leaves the line."""
        with refusals():
            self._answers.stop(self._store.get(conversation))

    def messages(self, conversation: str) -> list[dict]:
        """The whole conversation in the chat format; media are files."""
        with refusals():
            return [_as_message(message) for message in self._store.get(conversation).messages()]

    def clear(self, conversation: str) -> None:
        """Empties the conversation and deletes its files."""
        with refusals():
            self._answers.clear(self._store.get(conversation))

    def export_conversation(self, conversation: str) -> gr.FileData:
        """The conversation as a zip file: `messages.json` in the chat format, and the media."""
        with refusals():
            return _as_file(self._answers.export(self._store.get(conversation)))

    def import_conversation(self, file: gr.FileData) -> str:
        """Makes a conversation of an exported zip file and returns its id."""
        with refusals():
            path, known = _uploaded(file), self._store.create()
            try:
                self._answers.take_over(known, path)
            except BaseException:
                self._store.delete(known)
                raise
        return known.id

    def _with_turns(self, id: str) -> Conversation:
        known = self._store.get(id)
        if not known.turns:
            raise UserInputError("the conversation is empty: ask something first")
        return known

    async def _follow(self, turn: Turn) -> AsyncIterator[dict]:
        sent = None
        while not turn.ended:
            message = _as_message({"role": "assistant", "content": list(turn.answer)})
            if message != sent:
                yield message
                sent = message
            await asyncio.sleep(POLL)
        if turn.failed:
            raise gr.Error(turn.note, print_exception=False)
        missing = {"switched_off": turn.switched_off} if turn.switched_off else {}
        yield _as_message({"role": "assistant", "content": turn.answer}) | missing


def _uploaded(file: dict) -> str:
    """The path of a file that was uploaded here; a client could name any other."""
    path = Path(str(file.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserInputError(f"{path.name}: was not uploaded; give it as handle_file(path)")
    return str(path)


def _as_message(message: dict) -> dict:
    parts = [part if part["type"] == "text" else part | {"path": _as_file(part["path"])} for part in message["content"]]
    return {"role": message["role"], "content": [dict(part) for part in parts]}


def _as_file(path: str | Path) -> dict:
    """As Gradio names a file: its address is added on the way out, and its client fetches it."""
    return {"path": str(path), "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def refusals() -> Iterator[None]:
    """What the assistant's errors say reaches the client."""
    try:
        yield
    except NextGPTError as error:
        raise gr.Error(str(error), title="Not taken", print_exception=False) from None
