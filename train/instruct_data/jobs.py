"""What a recipe works with: a job asks the teacher, gives tasks with conversations, and counts what it dropped."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from nextgpt.modalities import MODALITIES

if TYPE_CHECKING:
    from nextgpt.train.instruct_data.material import CaptionedMedia, Prompts
    from nextgpt.train.instruct_data.teacher import Teacher

T = TypeVar("T")
# A chat template may hold the opening tag, so that an answer has the closing one alone.
_REASONING = re.compile(r"(?:<think(?:ing)?>|\A).*?</think(?:ing)?>", re.DOTALL)
OFFERED = 6  # media of the set that a prompt names


class Dropped(Exception):
    """A candidate that becomes no conversation; the message is the reason that it is counted under."""


def marker() -> re.Pattern:
    """A medium as a teacher reads and writes it, `[image: what it shows]`: its kind and its caption."""
    return re.compile(rf"\[({'|'.join(MODALITIES)}):\s*([^\[\]]*?)\s*\]", re.IGNORECASE)


def mark(kind: str, caption: str) -> str:
    """A medium for a teacher to read."""
    return f"[{kind}: {' '.join(caption.translate({ord('['): '(', ord(']'): ')'}).split())}]"


async def gather(parts: Iterable[Awaitable[T]]) -> list[T]:
    """All of them at a time. Where one fails, the others are still waited for, so that no answer is lost."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@dataclass
class Task:
    """A task, and conversations in which it is done.

    Args:
        text: what is compared with other tasks, so that none comes twice; empty where only the conversations are.
        conversations: lists of chat messages.
        is_classification: whether its answer is one of a few labels.
        depth: how often it was evolved.
    """

    text: str
    conversations: list[list[dict]] = field(default_factory=list)
    is_classification: bool = False
    depth: int = 0


@dataclass
class Job:
    """One unit of work of a recipe. What it does follows from its number, the seed and the pool alone, so that a run that
    was killed comes to the same requests again, and finds their answers in the record.

    Args:
        number: from 0.
        random: its own.
        seeds: tasks that were given.
        pool: tasks that earlier waves of jobs brought.
        media: what the user may show, with captions.
        prompts: texts with places.
        teacher: answers.
        check_new: drops a task that there was already when the job began.
        shown, made: kinds of media that the user may show and the assistant make.

    Attributes:
        dropped, cleaned: reason → how many candidates and texts.
    """

    number: int
    random: random.Random
    seeds: Sequence[Task]
    pool: Sequence[Task]
    media: CaptionedMedia
    prompts: Prompts
    teacher: Teacher
    check_new: Callable[[str], None]
    shown: Sequence[str]
    made: Sequence[str]
    dropped: Counter[str] = field(default_factory=Counter)
    cleaned: Counter[str] = field(default_factory=Counter)

    async def ask(self, prompt: str, **values: object) -> str:
        """The teacher's answer, without its reasoning, to a prompt by its name and the values of its places."""
        answer = await self.teacher.ask(self.number, prompt, self.prompts.fill(prompt, **values))
        answer, count = _REASONING.subn("", answer)
        self.cleaned["reasoning"] += bool(count)
        return answer

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts a candidate that is dropped inside, and goes on after it."""
        try:
            yield
        except Dropped as reason:
            self.dropped[str(reason)] += 1

    def check_kind(self, kind: str, role: str) -> None:
        """Drops a medium of a kind that the model does not take from the user, or make as the assistant."""
        if kind not in (self.made if role == "assistant" else self.shown):
            does = "make" if role == "assistant" else "take"
            raise Dropped(f"{MODALITIES[kind].article}, which the model does not {does}")

    def offer(self) -> str:
        """For a prompt: what the user may show, a few media of the set."""
        some = self.random.sample(self.media.media, min(OFFERED, len(self.media.media)))
        marked = [mark(medium.kind, medium.caption) for medium in some if medium.kind in self.shown]
        return "\n".join(marked) or "(nothing: the user shows no media)"
