"""Asks a judge which of two answers is better, in both orders (Zheng et al. 2023, section 3.4), and keeps what it says."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nextgpt.errors import UserInputError
from nextgpt.modalities import check_known
from nextgpt.train.data.files import whole_file
from nextgpt.train.instruct_data.jobs import Dropped, gather
from nextgpt.train.instruct_data.material import Prompts, fingerprint
from nextgpt.train.instruct_data.record import Record
from nextgpt.train.instruct_data.teacher import GO_ON, Teacher, TeacherSettings, run_to_end
from nextgpt.train.judge.answers import Shown, answers_of, read_questions, state_of
from nextgpt.train.judge.page import write_page
from nextgpt.train.judge.verdicts import SIDES, Question, Tally, Verdict, addresses_judge, read_verdict, tally
from nextgpt.train.preferences.pairs import prompt_key

PROMPT = "judge_pair"
LISTED = 10  # questions in a line of the summary; the page and `judge.json` have all


@dataclass
class JudgeReport:
    """What a comparison found.

    Args:
        names: of A and B.
        tally: rates, scores, problems.
        page: to read.
        requests, tokens: that were used.
        stopped: why questions are left; empty where none are.
    """

    names: tuple[str, str]
    tally: Tally
    page: Path
    requests: int
    tokens: int
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return vars(self) | {"tally": self.tally.to_dict(), "page": str(self.page)}

    def summary(self) -> list[str]:
        """Lines for a person."""
        found = self.tally
        lines = [f"A is {self.names[0]}, B is {self.names[1]}: {found.questions:,} questions, each in both orders"]
        if found.rates:
            lines.append("A against B, with 95% bootstrap intervals:")
        for name, (share, low, high) in found.rates.items():
            lines.append(f"{name:20} {100 * share:5.1f}%  ({100 * low:.1f} – {100 * high:.1f}%)")
        for name, (mean, low, high) in found.scores.items():
            lines.append(f"{f'score of {name}':20} {mean:5.2f}   ({low:.2f} – {high:.2f})")
        for reason, numbers in (found.problems | found.addressing).items():
            some = ", ".join(map(str, numbers[:LISTED])) + ", …" * (len(numbers) > LISTED)
            out = ", in no rate" * (reason in found.problems)
            lines.append(f"{len(numbers):,} of {found.questions:,}{out}: {reason} (questions {some})")
        used = f"{self.requests:,} requests, {self.tokens:,} tokens; " if self.requests else ""
        return [*lines, f"{used}{self.page}"]


def judge(
    names: tuple[str, str],
    questions: str | Path,
    judge: TeacherSettings,
    out: str | Path,
    *,
    shown: Sequence[str] = (),
    prompts: str | Path | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> JudgeReport:
    """Compares A and B; `out` gets the answers, the record of what the judge was asked, `judge.json` and `index.html`.

    Args:
        names: models, or JSON-lines files of the same questions with answers.
        questions: JSON-lines file of chat messages.
        judge: the API, the model and the limits.
        shown: kinds of media that the judge gets as content parts; others it knows by caption.
        prompts: folder with a text in place of the package's.
        max_new_tokens: of an answer of A and B.
        seed: of the intervals.

    Raises:
        UserInputError: something given is not what it should be.
    """
    check_known(shown, "the judge is to be shown media of the kinds")
    judge.check()
    asked, texts = read_questions(Path(questions)), Prompts(Path(prompts) if prompts else None)
    out, keys = made_folder(out), _keys(asked)
    answers = []
    with Record(out / "judge.requests.jsonl", "another folder with --out") as record:
        sides = [fingerprint([name, state_of(name), keys, max_new_tokens]) for name in names]
        record.begin(
            {
                "judge_model": judge.model,
                "temperature": judge.temperature,
                "shown": sorted(shown),
                "questions": fingerprint(keys),
                "answers_of_A": sides[0],
                "answers_of_B": sides[1],
                "prompt": fingerprint(texts.text(PROMPT)),
            }
        )
        for side, name, state in zip("ab", names, sides, strict=True):
            answers.append(answers_of(name, asked, out / f"{side}-{state}", max_new_tokens))
        comparison = Comparison(asked, answers, texts, Teacher(judge, record), shown)
        stopped = run_to_end(comparison())
    report = JudgeReport(names, tally(comparison.found, seed), out / "index.html", record.requests, record.tokens, stopped)
    return write_report(report, asked, answers, comparison.found)


def _keys(questions: Sequence[list[dict]]) -> list[str]:
    """Of each question one that changes with its words and with what its media hold."""
    return [prompt_key(messages, exactly=True) for messages in questions]


def judge_by_reward(
    names: tuple[str, str],
    questions: str | Path,
    reward: str | Path,
    out: str | Path,
    *,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> JudgeReport:
    """Compares A and B by one of our own reward models. It scores each answer by itself, so no order can count.

    Args:
        names, questions, out, max_new_tokens, seed: as for `judge`.
        reward: folder of the reward model (`nextgpt train reward`).

    Raises:
        UserInputError: something given is not what it should be.
    """
    from nextgpt.train.preferences.reward_model.model import RewardModel

    out, asked, found = made_folder(out), read_questions(Path(questions)), []
    score, keys = RewardModel.from_pretrained(reward), _keys(asked)
    states = [fingerprint([name, state_of(name), keys, max_new_tokens]) for name in names]
    answers = [
        answers_of(name, asked, out / f"{side}-{state}", max_new_tokens)
        for side, name, state in zip("ab", names, states, strict=True)
    ]
    for messages, *sides in zip(tqdm(asked, desc="Judging", unit=" questions"), *answers, strict=True):
        completions = [[{"role": "assistant", "content": parts}] for parts in sides]
        try:
            first, second = (round(each, 4) for each in score([messages] * 2, completions))
        except UserInputError as error:
            found.append(Question((None, None), (str(error), str(error))))
            continue
        better = "tie" if first == second else SIDES[first < second]
        other = "tie" if first == second else SIDES[first > second]
        why = f"scores of {reward}"
        found.append(Question((Verdict(better, first, second, why), Verdict(other, second, first, why))))
    report = JudgeReport(names, tally(found, seed), out / "index.html", 0, 0)
    return write_report(report, asked, answers, found)


def made_folder(out: str | Path) -> Path:
    """The folder of a comparison; UserInputError where it cannot be made."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(f"{out}: cannot be made ({error.strerror or error}); name another folder with --out") from None
    return Path(out)


def write_report(
    report: JudgeReport,
    asked: Sequence[list[dict]],
    answers: Sequence[list[list[dict]]],
    found: Sequence[Question | None],
) -> JudgeReport:
    """Writes the page, and `judge.json` beside it; where there is no room for them, the report says so."""
    out = report.page.parent
    try:
        write_page(report.page, report.summary(), asked, answers, found)
        with whole_file(out / "judge.json") as beside:
            beside.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        full = f"{out}: cannot be written ({error.strerror or error}); make room; {GO_ON}"
        report.stopped = report.stopped or full
    return report


@dataclass
class Comparison:
    """Asks a judge about questions with two answers each, and keeps what comes of them in `found`.

    Args:
        questions: chat messages.
        answers: of both sides, parts for each question.
        prompts: hold the judge's.
        teacher: the judge.
        shown: kinds of media that it gets as content parts.
    """

    questions: Sequence[list[dict]]
    answers: Sequence[list[list[dict]]]
    prompts: Prompts
    teacher: Teacher
    shown: Sequence[str]

    def __post_init__(self):
        self.found: list[Question | None] = [None] * len(self.questions)

    async def __call__(self) -> None:
        """Asks about all questions; raises `Stopped` where it ends before."""
        slots = asyncio.Semaphore(self.teacher.settings.concurrency)
        with tqdm(desc="Judging", total=len(self.questions), unit=" questions") as bar:

            async def each(number: int) -> None:
                async with slots:
                    self.found[number] = await self._question(number)
                bar.update()

            try:
                await gather(map(each, range(len(self.questions))))
            finally:
                await self.teacher.close()

    async def _question(self, number: int) -> Question:
        texts = [" ".join(part.get("text", "") for part in side[number]) for side in self.answers]
        verdicts, problems = [], []
        for order in ((0, 1), (1, 0)):
            verdict, problem = None, ""
            try:
                verdict = await self._verdict(number, order, [texts[side] for side in order])
            except Dropped as reason:
                problem = str(reason)
            verdicts.append(verdict)
            problems.append(problem)
        addressing = tuple(name for name, text in zip("AB", texts, strict=True) if addresses_judge(text))
        return Question(tuple(verdicts), tuple(problems), addressing)

    async def _verdict(self, number: int, order: tuple[int, int], texts: Sequence[str]) -> Verdict:
        media = Shown(self.shown)
        places = {"question": media.conversation(self.questions[number])}
        for name, side in zip(("first", "second"), order, strict=True):
            places[name] = media.text(self.answers[side][number])
        chance = random.Random(f"{number}/{order[0]}")
        code = f"{chance.getrandbits(32):08x}"
        while any(code in text for text in places.values()):
            code = f"{chance.getrandbits(32):08x}"
        prompt = media.content(self.prompts.fill(PROMPT, code=code, **places))
        return read_verdict(await self.teacher.ask(2 * number + order[0], PROMPT, prompt), code, texts)
