"""Puts the questions to the pipeline, one after the other, and writes what comes into the turn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from nextgpt.events import Event, Finished, MediaDone, MediaProgress, MediaStarted, Reply, TextDelta, not_made
from nextgpt.media import guess_modality
from nextgpt.media.images import png_data_url
from nextgpt.media.text import whole_characters
from nextgpt.pipeline import NextGPTPipeline

logger = logging.getLogger(__name__)

PLACES = 16  # how many may wait
PREVIEW_EVERY = 0.2  # seconds
TRIES = 4  # of a retry that finds the same words
EMPTY, STOPPED = "The answer is empty.", "Stopped."
SAME = "The same again: of this the model is sure."


class AnswerQueue:
    """Answers questions one at a time, in a thread of its own; the others wait. An answer goes on when its page is closed.

    Args:
        pipeline: what answers.
        store: where the conversations' sessions are.
        places: how many may wait while another is answered.
    """

    def __init__(self, pipeline: NextGPTPipeline, store: Store, places: int = PLACES):
        self.pipeline, self.store, self.places = pipeline, store, places
        self._worker = ThreadPoolExecutor(1, "nextgpt-answers")
        self._line: dict[Conversation, Future] = {}  # the first is being answered
        self._lock = threading.RLock()
        self._next_preview = 0.0

    def ask(self, conversation: Conversation, text: str, files: Sequence[str], options: dict) -> Turn:
        """Adds a question and lines it up, as soon as its files are read and checked; returns its turn.

        Raises:
            UserInputError: the question or a file of it is refused, the conversation is occupied, or the line is
                full. Nothing has changed then.
        """
        uploads = {Path(path).parent for path in files}
        with self._occupied_until_answered(conversation), _undone_on_error(conversation), refusing_for_visitors(*uploads):
            question = [{"type": guess_modality(path), "path": path} for path in files] + _words(text)
            if not question:
                raise UserInputError("the message is empty: write something or attach a file")
            self.pipeline.check(as_messages([*conversation.turns, Turn(question)]), **options)
            kept = [
                part if part["type"] == "text" else conversation.keep_file(part["path"], part["type"]) for part in question
            ]
            return self._line_up(conversation, len(conversation.turns), Turn(kept), options)

    def retry(self, conversation: Conversation, turn: int, options: dict) -> Turn:
        """Takes back everything from this turn on and asks it again; returns its new turn.

        Media come out otherwise by their seed alone. An answer of words alone is drawn by chance, and a few times if the
        words are the same.

        Raises:
            UserInputError: as `ask`.
        """
        with self._occupied_until_answered(conversation), refusing_for_visitors(conversation.folder):
            question, before = _question(conversation, turn), conversation.turns[turn].answer
            unlike = "" if media_of(before) else _text(before)
            if unlike:
                options = {"do_sample": True} | options
            return self._check_and_line_up(conversation, turn, question, options, unlike)

    def edit(self, conversation: Conversation, turn: int, options: dict, text: str) -> None:
        """Takes back everything from this turn on and asks it in other words; its media stay.

        Raises:
            UserInputError: as `ask`.
        """
        with self._occupied_until_answered(conversation), refusing_for_visitors(conversation.folder):
            question = media_of(_question(conversation, turn)) + _words(text)
            self._check_and_line_up(conversation, turn, question, options)

    def stop(self, conversation: Conversation) -> None:
        """Stops the answer within one token or one diffusion step; one that still waits leaves the line at once."""
        with self._lock:
            conversation.cancel.set()
            job = self._line.get(conversation)
            if job is not None and job.cancel():
                stopped = conversation.turns[-1]
                stopped.note = STOPPED
                self._release(conversation)
                stopped.ended = True

    def undo(self, conversation: Conversation, turn: int) -> list[dict]:
        """Takes back everything from this turn on and returns its question.

        Raises:
            UserInputError: the conversation is occupied, or has no such turn.
        """
        with self._occupied(conversation):
            question = _question(conversation, turn)
            conversation.truncate(turn)
            return question

    def clear(self, conversation: Conversation) -> None:
        """Empties the conversation.

        Raises:
            UserInputError: it is occupied.
        """
        with self._occupied(conversation):
            conversation.clear()

    def export(self, conversation: Conversation) -> Path:
        """Packs the conversation into a new zip file.

        Raises:
            UserInputError: it is occupied, or empty.
        """
        with self._occupied(conversation):
            if not conversation.turns:
                raise UserInputError("there is nothing to export yet: the conversation is empty")
            return conversation.export()

    def take_over(self, conversation: Conversation, path: str) -> None:
        """Puts an exported conversation in the place of this one.

        Raises:
            UserInputError: as `Conversation.unpack`, this model does not take what it holds, or the conversation is
                occupied. Nothing has changed then.
        """
        with self._occupied(conversation), _undone_on_error(conversation), refusing_for_visitors(conversation.folder):
            turns = conversation.unpack(path)
            if turns:
                self.pipeline.check(as_messages(turns))
            conversation.replace(turns)

    def place(self, conversation: Conversation) -> int:
        """How many answers come before this conversation's; 0 when it is its turn."""
        with self._lock:
            return list(self._line).index(conversation) if conversation in self._line else 0

    def close(self) -> None:
        """Stops the answer that is under way and drops those that wait."""
        with self._lock:
            for conversation in reversed(list(self._line)):
                self.stop(conversation)
        self._worker.shutdown()

    @contextmanager
    def _occupied(self, conversation: Conversation) -> Iterator[None]:
        """Reserves the conversation for one caller."""
        self._occupy(conversation)
        try:
            yield
        finally:
            self._release(conversation)

    @contextmanager
    def _occupied_until_answered(self, conversation: Conversation) -> Iterator[None]:
        """As `_occupied`, but the end of the answer that is lined up in it releases; or an error that prevents that."""
        self._occupy(conversation)
        try:
            self._check_places()
            yield
        except BaseException:
            self._release(conversation)
            raise

    def _occupy(self, conversation: Conversation) -> None:
        with self._lock:
            if conversation in self._line:
                raise UserInputError("an answer is under way in this conversation: wait for it, or stop it first")
            if conversation.busy:
                raise UserInputError("this conversation is being read or changed at the moment: try again when that is done")
            conversation.busy = True
            conversation.cancel.clear()

    def _release(self, conversation: Conversation) -> None:
        with self._lock:
            self._line.pop(conversation, None)
            conversation.busy = False

    def _check_places(self) -> None:
        if len(self._line) > self.places:
            raise UserInputError(f"too many are waiting (the line has {self.places} places): ask again in a minute")

    def _check_and_line_up(
        self, conversation: Conversation, position: int, question: list[dict], options: dict, unlike: str = ""
    ) -> Turn:
        if not question:
            raise UserInputError("the message is empty: write something")
        self.pipeline.check(as_messages([*conversation.turns[:position], Turn(question)]), **options)
        return self._line_up(conversation, position, Turn(question), options, unlike)

    def _line_up(self, conversation: Conversation, position: int, turn: Turn, options: dict, unlike: str = "") -> Turn:
        """Puts the turn in the place of everything from this position on, and its answer at the end of the line."""
        with self._lock:
            self._check_places()
            conversation.truncate(position)
            conversation.turns.append(turn)
            turn.options = options
            self._line[conversation] = self._worker.submit(self._answer, conversation, turn, options, unlike)
        return turn

    def _answer(self, conversation: Conversation, turn: Turn, options: dict, unlike: str) -> None:
        """Answers; again, up to a few times, as long as the answer is `unlike` in its words."""
        try:
            session = self.store.session(conversation)
            for _ in range(TRIES if unlike else 1):
                turn.forget_answer()
                messages = conversation.messages()
                for event in self.pipeline.stream(messages, session=session, cancel=conversation.cancel, **options):
                    self._take(conversation, turn, event)
                if conversation.cancel.is_set() or media_of(turn.answer) or _text(turn.answer) != unlike:
                    break
            else:
                turn.note = SAME if unlike else turn.note
        except NextGPTError as error:
            turn.note, turn.failed = f"Error: {for_visitors(error, conversation.folder)}", True
        except Exception as error:  # the conversation must stay usable; the log has the details
            logger.exception("the answer failed")
            turn.note, turn.failed = f"The answer failed ({type(error).__name__}); see the log.", True
        finally:
            turn.pending = None
            self._release(conversation)
            turn.ended = True

    def _take(self, conversation: Conversation, turn: Turn, event: Event) -> None:
        match event:
            case TextDelta(text):
                if not turn.answer or turn.answer[-1]["type"] != "text":
                    turn.answer.append({"type": "text", "text": ""})
                turn.answer[-1]["text"] += text
            case MediaStarted(modality=modality):
                turn.pending, self._next_preview = Pending(modality), 0.0
            case MediaProgress(modality=modality, step=step, total=total, preview=preview):
                turn.pending = Pending(modality, step, total, self._picture(conversation, turn, preview))
            case MediaDone(modality=modality, media=media, seed=seed, seconds=seconds):
                turn.answer.append(conversation.keep_media(modality, media, seed=seed, seconds=seconds))
                turn.pending = None
            case Finished(reply):
                self._finish(conversation, turn, reply)

    def _picture(self, conversation: Conversation, turn: Turn, preview: Callable[[], Image.Image] | None) -> str:
        """The preview, or the one before while that is fresh: where steps are fast, previews would hold up the answer."""
        before = turn.pending.preview if turn.pending else ""
        if preview is None or conversation.cancel.is_set() or time.monotonic() < self._next_preview:
            return before
        picture = png_data_url(preview())
        self._next_preview = time.monotonic() + PREVIEW_EVERY
        return picture

    def _finish(self, conversation: Conversation, turn: Turn, reply: Reply) -> None:
        """The texts as the pipeline gives them at the end, so that the next turn finds the KV cache valid."""
        made = iter(media_of(turn.answer))
        turn.answer = [part if part["type"] == "text" else next(made) for part in reply.message["content"]]
        if reply.timings.prompt_tokens:  # not stopped before the pipeline read anything
            turn.timings, turn.signals = reply.timings, self._signals(reply.token_ids)
        turn.switched_off = reply.switched_off
        if conversation.cancel.is_set():
            turn.note = STOPPED
        elif not reply.finished:
            turn.note = f"Cut off after {len(reply.token_ids)} tokens: the answer may be longer (see the options)."
        elif reply.switched_off:
            turn.note = not_made(reply.switched_off)
        elif not turn.answer:
            turn.note = EMPTY

    def _signals(self, token_ids: list[int]) -> list[tuple[str, list[str]]]:
        """The runs of signal tokens in what the LLM emitted: what each calls for, and its tokens."""
        runs = self.pipeline.signal_tokens
        kinds = {token: kind for kind, run in runs.items() for token in run}
        emitted = []
        for token in self.pipeline.processor.tokenizer.convert_ids_to_tokens(token_ids):
            kind = kinds.get(token)
            if kind and token == runs[kind][0]:
                emitted.append((kind, [token]))
            elif kind:
                emitted[-1][1].append(token)
        return emitted


def _question(conversation: Conversation, turn: int) -> list[dict]:
    if turn >= len(conversation.turns):
        raise UserInputError("the conversation has changed meanwhile: reload the page")
    return conversation.turns[turn].question


@contextmanager
def _undone_on_error(conversation: Conversation) -> Iterator[None]:
    """After an error, deletes the files that are new in the conversation's folder."""
    before = set(conversation.folder.iterdir())
    try:
        yield
    except BaseException:
        for path in set(conversation.folder.iterdir()) - before:
            path.unlink()
        raise


def _text(parts: Sequence[dict]) -> str:
    return " ".join(part["text"].strip() for part in parts if part["type"] == "text")


def _words(text: str) -> list[dict]:
    return [{"type": "text", "text": whole_characters(text)}] if text.strip() else []  # a box may hold half an emoji
