"""Makes preference pairs of several answers to each prompt: by a reward, by a judge model, or by a person."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.modalities import check_known
from nextgpt.train.data.lines import check_files, count_lines
from nextgpt.train.instruct_data.material import Prompts, fingerprint
from nextgpt.train.instruct_data.record import Record
from nextgpt.train.instruct_data.teacher import Teacher, TeacherSettings, run_to_end
from nextgpt.train.judge.compare import PROMPT, Comparison
from nextgpt.train.preferences.collect.answers import SampledAnswers, read_answers
from nextgpt.train.preferences.collect.person import LEFT, RIGHT, Choices
from nextgpt.train.preferences.collect.sample import ANSWERS_FILE
from nextgpt.train.preferences.pairs import PreferencePair, answer_key, prompt_key, read_pairs, write_pairs
from nextgpt.train.preferences.rewards import Reward

TIE, EQUAL, NO_REWARD = "neither answer is better", "all answers are equal or empty", "the reward does not apply"


@dataclass
class RankReport:
    """What came of a ranking.

    Args:
        file: of the pairs.
        prompts, pairs: how many there are.
        without: reason → prompts or comparisons that became no pair.
        requests, tokens: that a judge used.
        stopped: why comparisons are left; empty where none are.
    """

    file: Path
    prompts: int = 0
    pairs: int = 0
    without: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    tokens: int = 0
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return vars(self) | {"file": str(self.file)}

    def summary(self) -> list[str]:
        """Lines for a person."""
        used = f"; {self.requests:,} requests, {self.tokens:,} tokens" if self.requests else ""
        lines = [f"{self.file}: {self.pairs:,} pairs from {self.prompts:,} prompts{used}"]
        return [*lines, *(f"no pair {count:,} times: {reason}" for reason, count in self.without.most_common())]


@dataclass
class Duel:
    """Two answers to a prompt that are to be compared."""

    row: SampledAnswers
    first: dict
    second: dict

    def pair(self, first_is_better: bool, ranked_by: str, scores: tuple[float, float] | None = None) -> PreferencePair:
        """What comes of it; `scores` are those of the better and the other."""
        better, other = (self.first, self.second) if first_is_better else (self.second, self.first)
        return PreferencePair(self.row.prompt, [better], [other], ranked_by, scores, self.row.output_modalities)


def rank_by_reward(
    answers: str | Path, out: str | Path, load: Callable[[], Reward], ranked_by: str, *, pairs: int = 1
) -> RankReport:
    """Pairs by the reward of each answer: of each prompt those that lie furthest apart.

    Args:
        answers: file that `sample` wrote, or its folder.
        out: JSON-lines file of pairs.
        load: gives the reward, once all else has been read.
        ranked_by: stands in each pair.
        pairs: at most, of a prompt.

    Raises:
        UserInputError: something given is not what it should be.
    """
    rows, report = _read(answers, pairs), _report(out, ranked_by)
    reward, found = load(), []
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    for row in tqdm(rows, desc="Ranking", unit=" prompts"):
        different = row.different
        columns = {name: [row.columns.get(name)] * len(different) for name in names}
        try:
            rewards = reward([row.prompt] * len(different), [[answer] for answer in different], **columns)
        except UserInputError as error:
            raise UserInputError(f"{row.where}: {error}") from None
        scored = [(score, answer) for score, answer in zip(rewards, different, strict=True) if score is not None]
        apart = [(a[0] - b[0], a, b) for a, b in itertools.permutations(scored, 2) if a[0] > b[0]]
        apart.sort(key=lambda each: -each[0])  # stable: of equal gaps the first stays first
        for _, better, other in apart[:pairs]:
            duel = Duel(row, better[1], other[1])
            found.append(duel.pair(True, ranked_by, (better[0], other[0])))
        if not apart:
            report.without[EQUAL if len(different) < 2 else NO_REWARD if len(scored) < 2 else TIE] += 1
    return _written(report, rows, found)


def rank_by_judge(
    answers: str | Path,
    out: str | Path,
    judge: TeacherSettings,
    *,
    pairs: int = 1,
    shown: Sequence[str] = (),
    prompts: str | Path | None = None,
    seed: int = 0,
) -> RankReport:
    """Pairs by a judge model that is asked in both orders; one that prefers a place, not an answer, makes no pair.

    Beside `out` stands `<out>.requests.jsonl`, by which a run goes on and asks nothing twice.

    Args:
        answers, out, pairs: as for `rank_by_reward`; pairs are drawn.
        judge: the API, the model and the limits.
        shown: kinds of media that the judge gets as content parts; others it knows by caption.
        prompts: folder with a text in place of the package's.
        seed: of the draw.

    Raises:
        UserInputError: something given is not what it should be.
    """
    ranked_by = f"judge:{judge.model}"
    check_known(shown, "the judge is to be shown media of the kinds")
    judge.check()
    rows, report, texts = _read(answers, pairs), _report(out, ranked_by), Prompts(Path(prompts) if prompts else None)
    duels = list(_duels(rows, pairs, seed, report))
    sides = [[getattr(duel, side)["content"] for duel in duels] for side in ("first", "second")]
    with Record(report.file.with_name(f"{report.file.name}.requests.jsonl")) as record:
        settings = {"judge_model": judge.model, "temperature": judge.temperature, "shown": sorted(shown)}
        record.begin(settings | {"answers": _content(duels), "prompt": fingerprint(texts.text(PROMPT))})
        comparison = Comparison([duel.row.prompt for duel in duels], sides, texts, Teacher(judge, record), shown)
        report.stopped = run_to_end(comparison())
        report.requests, report.tokens = record.requests, record.tokens
    found = []
    for duel, question in zip(duels, comparison.found, strict=True):
        if question is None:
            continue  # it was stopped before
        if problem := next(filter(None, question.problems), ""):
            report.without[problem] += 1
        elif sum(question.points) in (0, 2):
            is_first = sum(question.points) == 2
            scores = question.scores if is_first else question.scores[::-1]
            found.append(duel.pair(is_first, ranked_by, tuple(map(float, scores)) if scores[0] >= scores[1] else None))
        else:
            report.without[TIE] += 1
    return _written(report, rows, found)


def rank_by_person(
    answers: str | Path,
    out: str | Path,
    ask: Callable[[Choices], None],
    *,
    pairs: int = 1,
    seed: int = 0,
) -> RankReport:
    """Pairs by a person, who sees two answers at a time; which of them stands on the left is drawn.

    Beside `out` stands `<out>.choices.jsonl`: what was chosen before is not asked again.

    Args:
        answers, out, pairs, seed: as for `rank_by_judge`.
        ask: shows the choices, and returns when they are made or the person has had enough (see `person.serve`).

    Raises:
        UserInputError: something given is not what it should be.
    """
    rows, report = _read(answers, pairs), _report(out, "person")
    duels = list(_duels(rows, pairs, seed, report))
    with Record(report.file.with_name(f"{report.file.name}.choices.jsonl")) as record:
        record.begin({"answers": _content(duels)})
        choices = Choices([(duel.row.prompt, duel.first["content"], duel.second["content"]) for duel in duels], record)
        ask(choices)
    found = []
    for duel, made in zip(duels, choices.made, strict=False):
        if made in (LEFT, RIGHT):
            found.append(duel.pair(made == LEFT, "person"))
        else:
            report.without[TIE] += 1
    if left := len(duels) - len(choices.made):
        report.stopped = f"{left:,} of {len(duels):,} choices are left: the same command goes on from there"
    return _written(report, rows, found)


def _read(answers: str | Path, pairs: int) -> list[SampledAnswers]:
    if pairs < 1:
        raise UserInputError(f"{pairs} pairs of a prompt are wanted, expected 1 or more")
    answers = Path(answers)
    return read_answers(answers / ANSWERS_FILE if answers.is_dir() else answers)


def _report(out: str | Path, ranked_by: str) -> RankReport:
    """Refuses to write over what another ranking made."""
    out = Path(out)
    if out.is_dir():
        raise UserInputError(f"{out}: a folder; name a file with -o")
    if out.exists():
        check_files([out])
    if out.exists() and count_lines([out]):
        try:
            others = {pair.ranked_by for pair in read_pairs([out])} - {ranked_by}
        except UserInputError:
            others = {"something else than pairs"}
        if others:
            raise UserInputError(f"{out}: is there already, made by {', '.join(sorted(others))}; name another file with -o")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(f"{out.parent}: cannot be made ({error.strerror or error}); name another with -o") from None
    return RankReport(out)


def _duels(rows: Iterable[SampledAnswers], pairs: int, seed: int, report: RankReport) -> Iterator[Duel]:
    """Of each prompt so many pairs of different answers, in an order that is drawn."""
    for row in rows:
        chance = random.Random(f"{seed}/{prompt_key(row.prompt, exactly=True)}")
        every = list(itertools.combinations(row.different, 2))
        report.without[EQUAL] += not every
        for answers in chance.sample(every, min(pairs, len(every))):
            yield Duel(row, *chance.sample(answers, 2))
    report.without = +report.without


def _content(duels: Sequence[Duel]) -> str:
    """Changes with what is compared."""
    return fingerprint([[prompt_key(d.row.prompt, exactly=True), answer_key(d.first), answer_key(d.second)] for d in duels])


def _written(report: RankReport, rows: Sequence[SampledAnswers], pairs: Sequence[PreferencePair]) -> RankReport:
    report.prompts, report.pairs = len(rows), len(pairs)
    try:
        write_pairs(report.file, pairs)
    except OSError as error:
        raise NextGPTError(
            f"{report.file}: cannot be written ({error.strerror or error}); make room and give the same command again"
        ) from None
    return report
