"""Long conversations of the nano world, in which pictures that were shown are asked about much later.

Such a picture, the needle, is alone on its background in the whole conversation, and the question names the background. It
is answered without a word of what it shows (or described at once, where that is asked for), so that the answer at the end
can come from the picture alone. What stands in between are nano's own conversations about other pictures and clips; sounds,
which the package holds in part only, are left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from nextgpt.errors import UserInputError
from nextgpt.events import Media
from nextgpt.hub.parts import preset_folder
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.nano.dialogues.composer import load_composer, media_line
from nextgpt.train.nano.dialogues.rehearsal import check_file, write_with_media
from nextgpt.train.nano.dialogues.turns import Made, Shown, Turn
from nextgpt.train.nano.world.media_files import TrueMedia, outside_files
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.things import PICTURE_VALUES, Clip, Picture

MEDIA = ("image", "video")
BACKGROUNDS = tuple(colour for colour in PICTURE_VALUES["background"] if colour != "white")  # what nobody asks for is white
SHOWING = ("Here is a picture.", "Look at this.", "Keep this picture in mind.", "I have a picture for you.", "See this one?")
SEEN = ("Thank you.", "I see it.", "I will keep it in mind.", "A nice picture.")
# How the needle is asked about: while it is taught, and in the test.
QUESTIONS = {
    "train": (
        *("What was in the picture on {}?", "What did I show you on a {} background?", "What was on {}?"),
        *("Which thing had a {} background?", "Tell me what the picture with the {} background showed."),
    ),
    "heldout": (
        *("Earlier there was a picture with a {} background. What was in it?", "What was on the {} picture?"),
        *("Do you remember the picture on {}? What was it of?", "Which thing did I show you on {}?"),
    ),
}
LEAST_TOKENS = 150  # of a conversation: the system prompt, a needle, a question and something in between
NEEDLES, ASKED = 3, 0.5  # in a conversation to learn from: how many, and questions for each other turn
RECALL, SHOW = "recall", "show"  # intents
Piece = list[Turn]  # a conversation of nano's, whose turns follow from one another


class Needle(NamedTuple):
    """A test: a conversation that ends with a question about a picture, and what is to be said.

    Args:
        turns: the last one is the question.
        picture: asked about.
        others: different things in the conversation's pictures, its own included: who guesses one of them is right as often.
    """

    turns: list[Turn]
    picture: Picture
    others: int


class LongConversations:
    """Makes long conversations of one split.

    Args:
        processor: whose tokens count.
        split: `train` or `heldout`, of the pictures and of the questions about them.
        world: a built world's folder; by default the one inside the package.
    """

    def __init__(self, processor: NextGPTProcessor, split: str, world: str | Path | None = None):
        world = Path(world or preset_folder("nano") / "world")
        self.processor, self.questions = processor, QUESTIONS[split]
        outside = outside_files(world, "dev" if split == "train" else split, MEDIA)
        self.composer = load_composer(world, split, outside, media=MEDIA)
        self.true = TrueMedia(World(world), "dev" if split == "train" else split)
        self.concepts = self.composer.setting.concepts

    def count(self, turns: Sequence[Turn]) -> int:
        """Tokens of some turns, without those that stand before every conversation."""
        return self._tokens(turns) - self.opening

    @cached_property
    def opening(self) -> int:
        """Tokens of what stands before every conversation."""
        turn = Turn("talk", ["Hi"], ["Hello."])
        return 2 * self._tokens([turn]) - self._tokens([turn, turn])

    def _tokens(self, turns: Sequence[Turn]) -> int:
        messages = media_line(list(turns))["messages"]
        return self.processor([messages], add_generation_prompt=False, load_media=False)["input_ids"].shape[1]

    def talk(self, rng: random.Random, length: int, reserved: Sequence[str] = ()) -> list[Piece]:
        """Conversations of at most `length` tokens together, and nearly that; no picture is on a reserved background."""
        pieces: list[Piece] = []
        misses = 0
        while misses < 5:
            piece = self.composer.conversation(rng)
            if piece[0].only is not None or any(_on(part, reserved) for turn in piece for part in _media(turn)):
                continue
            if (tokens := self.count(piece)) <= length:
                pieces.append(piece)
                length -= tokens
            else:
                misses += 1
        return pieces

    def needle(self, rng: random.Random, length: int, depth: float, described: bool = False) -> Needle:
        """A test of at most `length` tokens, its answer included.

        Args:
            depth: where the picture stands, from 0, the beginning, to 1, just before the question.
            described: the assistant says at once what the picture shows.
        """
        background = rng.choice(BACKGROUNDS)
        shown = self._show(rng, background, described)
        question = self._ask(rng, shown.medium)
        pieces = self.talk(rng, length - self.opening - self.count([shown, question]), (background,))
        starts = [sum(map(self.count, pieces[:i])) for i in range(len(pieces) + 1)]
        place = min(range(len(starts)), key=lambda i: abs(starts[i] - depth * starts[-1]))
        turns = _joined([*pieces[:place], [shown], *pieces[place:], [question]])
        things = {part.concept for turn in turns for part in _media(turn) if isinstance(part, Picture)}
        return Needle(turns, shown.medium, len(things))

    def lesson(self, rng: random.Random, length: int, described: float = 0.5) -> list[Turn]:
        """A conversation of at most `length` tokens to learn from: several needles, each asked about again and again.

        Args:
            described: share of the needles of which the assistant says at once what they show.
        """
        backgrounds = rng.sample(BACKGROUNDS, NEEDLES)
        shown = [[self._show(rng, background, rng.random() < described)] for background in backgrounds]
        pieces = self.talk(rng, length - self.opening, backgrounds)
        questions = 1 + int(ASKED * len(pieces))
        for each in shown:
            pieces.insert(rng.randint(0, len(pieces)), each)
        for _ in range(questions):
            each = rng.choice(shown)
            after = next(i for i, piece in enumerate(pieces) if piece is each)
            pieces.insert(rng.randint(after + 1, len(pieces)), [self._ask(rng, each[0].medium)])
        ours = (RECALL, SHOW)
        while sum(map(self.count, pieces)) > length - self.opening:
            others = [i for i, piece in enumerate(pieces) if piece[0].intent not in ours]
            del pieces[rng.choice(others) if others else -1]
        return _joined(pieces)

    def render(self, shown: Shown) -> Media:
        """The medium that is shown."""
        return self.true.render(shown.medium) if shown.medium else self.true.outside(shown.path)

    def _show(self, rng: random.Random, background: str, described: bool) -> Turn:
        picture = self.composer.pictures.sample(rng, background=background)
        if described:
            return Turn(SHOW, [Shown.of(picture), rng.choice(SHOWING)], [self._said(picture, "is", "are")], picture)
        return Turn(SHOW, [Shown.of(picture), rng.choice(SHOWING)], [rng.choice(SEEN)], picture)

    def _ask(self, rng: random.Random, picture: Picture) -> Turn:
        question = rng.choice(self.questions).format(picture.background)
        return Turn(RECALL, [question], [self._said(picture, "was", "were")], picture)

    def _said(self, picture: Picture, one: str, many: str) -> str:
        """Where first, then what: what is looked for stands just before what is found."""
        concept = self.concepts[picture.concept]
        return f"On {picture.background} there {many if concept.is_plural else one} {concept.indefinite}."


def _joined(pieces: Sequence[Piece]) -> list[Turn]:
    return [turn for piece in pieces for turn in piece]


def _media(turn: Turn) -> Iterator[Shown | Picture]:
    """What is seen in a turn."""
    for part in (*turn.user, *turn.assistant, Made(turn.medium)):
        if isinstance(part, Shown):
            yield part.medium or part
        elif isinstance(part, Made) and part.medium is not None:
            yield part.medium


def _on(part: Shown | Picture, backgrounds: Sequence[str]) -> bool:
    """Whether it is a picture on one of these backgrounds; of one from outside the world its path tells."""
    if isinstance(part, Shown):
        return any(f"_{background}_" in part.path for background in backgrounds)
    return isinstance(part, (Picture, Clip)) and part.background in backgrounds


def write_long(out: str | Path, count: int, length: int, *, model: str = "nano", seed: int = 0) -> int:
    """Writes long conversations to a JSON-lines file and their media to a folder beside it, of the same name.

    Args:
        out: the file; `data/long.jsonl` has its media in `data/long`.
        count: of conversations.
        length: of the longest, in tokens; they are of all lengths up to that.
        model: whose tokens count.
        seed: the same gives the same files.

    Returns:
        The number of media files.

    Raises:
        UserInputError: the file's name leaves no name for the folder, or there is nothing to write.
    """
    out = check_file(out, count)
    check_length(length)
    long, shown = LongConversations(NextGPTProcessor.from_pretrained(model), "train"), {}

    def lines() -> Iterator[dict]:
        for number in range(count):
            rng = random.Random(f"{seed}/long/{number}")
            turns = long.lesson(rng, rng.randint(max(LEAST_TOKENS, length // 4), length))
            shown.update((part.path, part) for turn in turns for part in turn.user if isinstance(part, Shown))
            yield media_line(turns)

    return write_with_media(out, lines(), count, lambda path: long.render(shown[path]))


def check_length(length: int) -> None:
    """Raises UserInputError where a conversation of so many tokens holds no needle and nothing around it."""
    if length < LEAST_TOKENS:
        raise UserInputError(
            f"length is {length}, expected at least {LEAST_TOKENS} tokens: room for a picture and a question"
        )
