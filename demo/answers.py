"""Puts the questions to the pipeline, one after the other, and writes what comes into the turn.

It knows conversations, the pipeline and its events; nothing of what a page looks like.
"""

from __future__ import annotations

import base64
import io
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from nextgpt.demo.conversations import (
    Conversation,
    Pending,
    Store,
    Turn,
    as_messages,
    for_visitors,
    media_of,
    refusing_for_visitors,
)
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.events import Event, Finished, MediaDone, MediaProgress, MediaStarted, Reply, TextDelta
from nextgpt.media import guess_modality
from nextgpt.pipeline import NextGPTPipeline

logger = logging.getLogger(__name__)

PLACES = 16  # how many may wait
EMPTY, STOPPED = "The answer is empty.", "Stopped."


class Answers:
    """The one who answers: a single thread behind a waiting line. An answer goes on when its page goes away.

    Args:
        pipeline: what answers.
        store: where the conversations' sessions are.
        places: how many may wait while another is answered.
    """

    def __init__(self, pipeline: NextGPTPipeline, store: Store, places: int = PLACES):
        self.pipeline, self.store, self.places = pipeline, store, places
        self._worker = ThreadPoolExecutor(1, "nextgpt-answers")
        self._line: list[Conversation] = []  # the first is being answered
        self._lock = threading.Lock()

    def ask(self, conversation: Conversation, text: str, files: Sequence[str], options: dict) -> None:
        """Adds a question and lines it up.

        Raises:
            UserInputError: the question or a file of it is refused, another answer is under way, or the line is
                full. Nothing has changed then.
        """
        with self._place(conversation), refusing_for_visitors(*{Path(path).parent for path in files}):
            question = [{"type": guess_modality(path), "path": path} for path in files] + _words(text)
            if not question:
                raise UserInputError("the message is empty: write something or attach a file")
            self.pipeline.check([*conversation.messages(), {"role": "user", "content": question}])
            kept = [part if part["type"] == "text" else conversation.keep_file(part["path"]) for part in question]
            self._start(conversation, Turn(kept), options)

    def ask_again(self, conversation: Conversation, turn: int, options: dict, text: str | None = None) -> None:
        """Takes back everything from this turn on and puts its question anew, with other words if `text` is given.

        Raises:
            UserInputError: as `ask`.
        """
        question = conversation.turns[turn].question
        if text is not None:
            question = media_of(question) + _words(text)
        if not question:
            raise UserInputError("the message is empty: write something")
        with self._place(conversation):
            conversation.truncate(turn)
            self._start(conversation, Turn(question), options)

    def undo(self, conversation: Conversation, turn: int) -> list[dict]:
        """Takes back everything from this turn on and returns its question."""
        self._check_idle(conversation)
        question = conversation.turns[turn].question
        conversation.truncate(turn)
        return question

    def clear(self, conversation: Conversation) -> None:
        """Empties the conversation."""
        self._check_idle(conversation)
        conversation.clear()

    def take_over(self, conversation: Conversation, path: str) -> None:
        """Puts an exported conversation in the place of this one.

        Raises:
            UserInputError: as `Conversation.unpack`, or this model does not take what it holds.
        """
        self._check_idle(conversation)
        turns = conversation.unpack(path)
        if turns:
            with refusing_for_visitors(conversation.folder):
                self.pipeline.check(as_messages(turns))
        conversation.truncate(0)
        conversation.turns = turns

    def place(self, conversation: Conversation) -> int:
        """How many answers come before this conversation's; 0 when it is its turn."""
        with self._lock:
            return self._line.index(conversation) if conversation in self._line else 0

    def close(self) -> None:
        """Stops the answer that is under way and drops those that wait."""
        with self._lock:
            for conversation in self._line:
                conversation.cancel.set()
        self._worker.shutdown(cancel_futures=True)

    def _check_idle(self, conversation: Conversation) -> None:
        if conversation.busy:
            raise UserInputError("an answer is under way in this conversation: wait for it, or stop it first")

    @contextmanager
    def _place(self, conversation: Conversation) -> Iterator[None]:
        """Takes a place in the line for the conversation; gives it back if an error keeps the answer from starting."""
        with self._lock:
            self._check_idle(conversation)
            if len(self._line) > self.places:
                raise UserInputError(f"too many are waiting (the line has {self.places} places): ask again in a minute")
            self._line.append(conversation)
            conversation.busy = True
        try:
            yield
        except BaseException:
            self._leave(conversation)
            raise

    def _leave(self, conversation: Conversation) -> None:
        with self._lock:
            self._line.remove(conversation)
            conversation.busy = False

    def _start(self, conversation: Conversation, turn: Turn, options: dict) -> None:
        conversation.turns.append(turn)
        conversation.cancel.clear()
        self._worker.submit(self._answer, conversation, turn, options)

    def _answer(self, conversation: Conversation, turn: Turn, options: dict) -> None:
        try:
            session = self.store.session(conversation)
            events = self.pipeline.stream(conversation.messages(), session=session, cancel=conversation.cancel, **options)
            for event in events:
                self._take(conversation, turn, event)
        except NextGPTError as error:
            turn.note, turn.failed = f"Error: {for_visitors(error, conversation.folder)}", True
        except Exception as error:  # the conversation must stay usable; the log has the details
            logger.exception("the answer failed")
            turn.note, turn.failed = f"The answer failed ({type(error).__name__}); see the log.", True
        finally:
            turn.pending = None
            self._leave(conversation)

    def _take(self, conversation: Conversation, turn: Turn, event: Event) -> None:
        match event:
            case TextDelta(text):
                if not turn.answer or turn.answer[-1]["type"] != "text":
                    turn.answer.append({"type": "text", "text": ""})
                turn.answer[-1]["text"] += text
            case MediaStarted(modality=modality):
                turn.pending = Pending(modality)
            case MediaProgress(modality=modality, step=step, total=total, preview=preview):
                turn.pending = Pending(modality, step, total, _data_address(preview()) if preview else "")
            case MediaDone(modality=modality, media=media, seed=seed, seconds=seconds):
                turn.answer.append(conversation.keep_media(modality, media, seed=seed, seconds=seconds))
                turn.pending = None
            case Finished(reply):
                self._finish(conversation, turn, reply)

    def _finish(self, conversation: Conversation, turn: Turn, reply: Reply) -> None:
        """The texts as the pipeline gives them at the end, so that the next turn finds the KV cache valid."""
        made = iter(media_of(turn.answer))
        turn.answer = [part if part["type"] == "text" else next(made) for part in reply.message["content"]]
        turn.timings, turn.token_ids = reply.timings, reply.token_ids
        if conversation.cancel.is_set():
            turn.note = STOPPED
        elif not reply.finished:
            turn.note = f"Cut off after {len(reply.token_ids)} tokens: the answer may be longer (see the options)."
        elif not turn.answer:
            turn.note = EMPTY


def _data_address(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _words(text: str) -> list[dict]:
    return [{"type": "text", "text": text}] if text.strip() else []
