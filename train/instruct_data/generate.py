"""Makes conversations with a teacher: seeds → requests → answers → rules → conversations, and the record of all of it.

Jobs run in waves. What a job asks follows from its number, the seed and what earlier waves brought, so a run that goes on
walks the same way again, finds in the record what was answered, and asks the rest.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.data.lines import count_lines
from nextgpt.train.data.turns import turn_problems
from nextgpt.train.instruct_data.dialogues import captions_to_instructions, modality_switching
from nextgpt.train.instruct_data.evol_instruct import evol_instruct
from nextgpt.train.instruct_data.jobs import Dropped, Job, Task
from nextgpt.train.instruct_data.material import SEEDS, CaptionedMedia, Prompts, fingerprint, read_captions, read_seeds
from nextgpt.train.instruct_data.record import Record, Stopped
from nextgpt.train.instruct_data.rules import KnownTasks
from nextgpt.train.instruct_data.self_instruct import TASKS_ASKED, self_instruct
from nextgpt.train.instruct_data.teacher import Teacher, TeacherSettings, run_to_end

WAVE = 32  # jobs that see the same pool
FRUITLESS_JOBS = 32  # in a row that brought nothing; then it is not worth going on


class Recipe(NamedTuple):
    """A way to make conversations.

    Args:
        job: what one job does.
        tasks: that a job asks for.
        is_compared: whether its tasks are compared by ROUGE-L with the known ones.
        needs_media: whether it begins with the user's captioned media.
    """

    job: Callable[[Job], Awaitable[list[Task]]]
    tasks: int = 1
    is_compared: bool = False
    needs_media: bool = False


RECIPES = {
    "self-instruct": Recipe(self_instruct, tasks=TASKS_ASKED, is_compared=True),
    "evol-instruct": Recipe(evol_instruct),
    "modality-switching": Recipe(modality_switching, is_compared=True),
    "captions-to-instructions": Recipe(captions_to_instructions, needs_media=True),
}


@dataclass
class GenerationReport:
    """The result of a run, with those before it on the same file.

    Args:
        file, record: of the conversations, and of what was asked and answered.
        conversations: that are in the file.
        dropped, cleaned: reason → candidates that became no conversation, texts that were changed.
        requests, tokens: that were used.
        stopped: why there are fewer conversations than were wanted; else empty.
    """

    file: Path
    record: Path
    conversations: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cleaned: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    tokens: int = 0
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return vars(self) | {"file": str(self.file), "record": str(self.record)}

    def summary(self) -> list[str]:
        """Lines for a person."""
        used = f"{self.requests:,} requests, {self.tokens:,} tokens"
        lines = [f"{self.file}: {self.conversations:,} conversations kept, {self.dropped.total():,} dropped; {used}"]
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"cleaned {count:,}: {what}" for what, count in self.cleaned.most_common()]
        return [*lines, f"requests and answers: {self.record}"]


def generate(
    recipe: str,
    out: str | Path,
    count: int,
    teacher: TeacherSettings,
    *,
    seeds: str | Path | None = None,
    media: str | Path | None = None,
    prompts: str | Path | None = None,
    model: str | None = "nano",
    seed: int = 0,
) -> GenerationReport:
    """Writes `count` conversations to a JSON-lines file, and beside it `<file>.requests.jsonl`, by which a run goes on.

    However the run ends, the conversations so far are written, and the report says why it ended.

    Args:
        recipe: one of `RECIPES`.
        teacher: the API, the model and the limits.
        seeds: file of tasks to begin with; None: those of the package.
        media: file of captions of the user's media.
        prompts: folder of texts in place of the package's.
        model: whose kinds of media and length count; None: all kinds and any length.
        seed: another one, other requests.

    Raises:
        UserInputError: something given is not what it should be. Nothing was asked.
    """
    out = Path(out)
    if recipe not in RECIPES:
        raise UserInputError(f"the recipe {recipe!r} is unknown: expected {', '.join(RECIPES)}")
    if count < 1:
        raise UserInputError(f"{count} conversations are wanted, expected 1 or more")
    if RECIPES[recipe].needs_media and media is None:
        raise UserInputError(f"{recipe} begins with media and their captions: name a file of them with --media")
    record_file = out.with_name(f"{out.name}.requests.jsonl")
    if out.exists() and not record_file.exists():
        raise UserInputError(f"{out}: is there already, and no run made it ({record_file.name} is not there); name another")
    teacher.check()
    fit = _Fit(model, out.parent)
    captioned = read_captions(Path(media), out.parent) if media is not None else []
    tasks, shown = read_seeds(Path(seeds or SEEDS), captioned, out.parent)
    usable = [medium for medium in (*captioned, *shown) if medium.kind in (*fit.shown, *fit.made)]
    if captioned and not usable:
        raise UserInputError(f"{media}: {model} takes and makes no media of these kinds; name others, or another --model")
    found, texts = CaptionedMedia(usable), Prompts(Path(prompts) if prompts else None)
    settings = {
        "recipe": recipe,
        "teacher_model": teacher.model,
        "temperature": teacher.temperature,
        "max_answer_tokens": teacher.max_answer_tokens,
        "seed": seed,
        "model": model,
        "seeds": fingerprint([[task.text, task.is_classification] for task in tasks]),
        "media": found.fingerprint(),
        "prompts": texts.fingerprint(),
    }
    report = GenerationReport(out, record_file)
    run = _Run(RECIPES[recipe], count, seed, fit, tasks, found, texts, report)
    with Record(record_file) as record:
        record.begin(settings)
        try:
            report.stopped = run_to_end(run(Teacher(teacher, record)))
        finally:
            report.requests, report.tokens = record.requests, record.tokens
            _write(run.kept, report)
    return report


def _write(kept: Sequence[list[dict]], report: GenerationReport) -> None:
    """Writes the conversations, unless an earlier run of the same record brought more: a file never gets shorter."""
    try:
        report.conversations = len(kept)
        if report.file.exists():
            report.conversations = max(len(kept), count_lines([report.file]))
        if kept and report.conversations == len(kept):
            with whole_file(report.file) as beside:
                beside.write_bytes(b"".join(json_line({"messages": messages}) for messages in kept))
    except OSError as error:
        report.conversations = 0
        report.stopped = report.stopped or (
            f"{report.file}: cannot be written ({error.strerror or error}); make room and give the same command again: "
            f"{report.record.name} has what it is made of"
        )


@dataclass
class _Run:
    """The waves of a run, and what they brought."""

    recipe: Recipe
    count: int
    seed: int
    fit: _Fit
    seeds: Sequence[Task]
    media: CaptionedMedia
    prompts: Prompts
    report: GenerationReport
    kept: list[list[dict]] = field(default_factory=list)
    pool: list[Task] = field(default_factory=list)
    fruitless: int = 0  # jobs in a row that brought nothing

    def __post_init__(self):
        self._contents: set[str] = set()
        self._known = KnownTasks(task.text for task in self.seeds if self.recipe.is_compared)

    async def __call__(self, teacher: Teacher) -> None:
        """Runs until there are enough conversations; raises `Stopped` where it ends before."""
        number, pool = 0, ()
        with tqdm(desc="Asking", total=self.count, unit=" conversations") as bar:
            try:
                while len(self.kept) < self.count:
                    if number % WAVE == 0:
                        pool = tuple(self.pool)
                    wanted = -(-(self.count - len(self.kept)) // self.recipe.tasks)
                    jobs = [self._job(number + i, pool, teacher) for i in range(min(wanted, WAVE - number % WAVE))]
                    await self._finish(jobs, teacher, bar)
                    number += len(jobs)
                    if self.fruitless >= FRUITLESS_JOBS and len(self.kept) < self.count:
                        most = max(self.report.dropped, key=self.report.dropped.get, default="no answer held a conversation")
                        why = f"the last {self.fruitless} tries brought nothing; mostly: {most}"
                        raise Stopped(
                            f"{why}; look into {self.report.record}, and try other --prompts or --seeds in another file"
                        )
            finally:
                await teacher.close()

    def _job(self, number: int, pool: Sequence[Task], teacher: Teacher) -> Job:
        chance = random.Random(f"{self.seed}/{number}")
        kinds = self.fit.shown, self.fit.made
        check_new = partial(self._known.check, first=len(self._known))  # not those that come while it runs
        return Job(number, chance, self.seeds, pool, self.media, self.prompts, teacher, check_new, *kinds)

    async def _finish(self, jobs: Sequence[Job], teacher: Teacher, bar: tqdm) -> None:
        """Runs jobs and keeps what they bring, in order; where one ends the run, the others' requests are waited for."""
        slots = asyncio.Semaphore(teacher.settings.concurrency)  # a job is finished before another begins

        async def each(job: Job) -> list[Task]:
            tasks = []
            async with slots:
                with job.counting():
                    tasks = await self.recipe.job(job)
            bar.set_postfix_str(f"{teacher.record.requests:,} requests, {teacher.record.tokens:,} tokens")
            return tasks

        running, stopped = [asyncio.create_task(each(job)) for job in jobs], None
        try:
            for job, task in zip(jobs, running, strict=True):
                try:
                    self._take(job, await task)
                except Stopped as stop:
                    stopped = stopped or stop
                bar.update(len(self.kept) - bar.n)
        finally:  # when a person or a defect ends it, the rest is not waited for
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if stopped is not None:
            raise stopped

    def _take(self, job: Job, tasks: Sequence[Task]) -> None:
        """Keeps what a job brought, as far as it is new and fits."""
        before = len(self.kept)
        if before >= self.count:
            return
        for task in tasks:
            self._take_task(job, task)
        self.fruitless = 0 if len(self.kept) > before else self.fruitless + 1
        self.report.dropped.update(job.dropped)
        self.report.cleaned.update(+job.cleaned)

    def _take_task(self, job: Job, task: Task) -> None:
        with job.counting():
            if self.recipe.is_compared:
                self._known.check(task.text)
            before = len(self.kept)
            for messages in task.conversations:
                with job.counting():
                    self._check(messages)
                    if len(self.kept) < self.count:
                        self.kept.append(messages)
            if len(self.kept) > before:
                self.pool.append(task)
                if self.recipe.is_compared:
                    self._known.add(task.text)

    def _check(self, messages: list[dict]) -> None:
        for _, problem in turn_problems(messages):
            raise Dropped(problem)
        self.fit.check(messages)
        content = json.dumps(messages, sort_keys=True)
        if content in self._contents:
            raise Dropped("the same as another conversation")
        self._contents.add(content)


class _Fit:
    """Which conversations a model takes; with None, all. Paths in them start from `folder`.

    Attributes:
        shown, made: kinds of media that the user may show and the assistant make.
    """

    def __init__(self, model: str | None, folder: Path):
        self.model, self.folder = model, str(folder)
        self.shown, self.made, self.read = list(MODALITIES), list(MODALITIES), None
        if model is None:
            return
        from nextgpt.configuration_nextgpt import NextGPTConfig
        from nextgpt.hub.parts import fetch_model
        from nextgpt.train.data.dataset import Reader
        from nextgpt.train.start import load_processor

        location = fetch_model(model)
        config = NextGPTConfig.from_pretrained(location)
        self.shown, self.made = list(config.input_modalities), list(config.signal_tokens)
        self.longest = config.max_positions
        self.read = Reader(load_processor(location, config))

    def check(self, messages: list[dict]) -> None:
        """Drops a conversation that the model does not take."""
        if self.read is None:
            return
        from nextgpt.train.data.lines import Line

        try:
            example = self.read(Line(0, "", self.folder, json_line({"messages": messages})))
        except UserInputError as error:
            raise Dropped(f"not taken by {self.model} ({str(error).removeprefix(': ')})") from None
        if self.longest is not None and len(example.ids) > self.longest:
            raise Dropped(f"longer than the {self.longest:,} tokens that {self.model} takes")
