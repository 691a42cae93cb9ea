"""Composes the nano model's conversations from phrasings and the world; knows no model.

``python -m nextgpt.train.nano.dialogues.composer --world runs/nano/world --out runs/nano/data`` writes four kinds of JSON
lines (each with a ``_dev`` twin from the development split; held-out combinations are in none), one conversation a line:

- ``text``: for the language model's pretraining. Media are their captions alone, on both sides:
  ``{"type": "image", "caption": "a small cat, flat style, red background"}``; `something else` is from outside the world.
- ``align_encoders``: a medium → its caption. ``align_decoders``: a caption or plain request → the medium.
- ``instruct``: conversations like those of ``text`` with real media: the user's have ``"path"`` (relative to the file)
  instead of the caption.

A conversation whose answers may hold some kinds only begins with a system message that says so (`answer_only`).
Every line also names the ``intents`` of its turns, for measuring, and of a scenario what the last answer's words must say.
The same seed gives the same files, byte for byte.
"""

import argparse
import itertools
import json
import logging
import random
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from nextgpt.signals import MODALITIES, answer_only
from nextgpt.train.data.files import whole_file
from nextgpt.train.nano.dialogues.outside import things_outside, without_names_of_other_sounds
from nextgpt.train.nano.dialogues.phrasings import PHRASINGS, load_phrasings, roughen
from nextgpt.train.nano.dialogues.replies import PROMISES, Replies
from nextgpt.train.nano.dialogues.scenarios import Scenario, load_scenarios
from nextgpt.train.nano.dialogues.turns import Made, MediaTurns, NoSuchMedium, Part, Setting, Shown, Turn, choose, with_shown
from nextgpt.train.nano.dialogues.turns_clips import ClipTurns
from nextgpt.train.nano.dialogues.turns_crossings import CrossingTurns
from nextgpt.train.nano.dialogues.turns_pictures import PictureTurns
from nextgpt.train.nano.dialogues.turns_scenarios import ScenarioTurns
from nextgpt.train.nano.dialogues.turns_sounds import SoundTurns
from nextgpt.train.nano.dialogues.turns_talk import TalkTurns
from nextgpt.train.nano.world.clips import MOTIONS, ClipWorld
from nextgpt.train.nano.world.media_files import outside_files, write_files
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.things import (
    PICTURE_VALUES,
    SOUND_VALUES,
    Clip,
    Medium,
    Picture,
    Sound,
    load_concepts,
    load_instruments,
    modality_of,
)

logger = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
OUTSIDE_CAPTION = "something else"  # what stands for a medium from outside the world in words-only conversations
# How often people begin with each kind of wish, by the media that it needs.
FRESH = {
    "image": {"ask_for": 42, "ask_for_two": 6, "show": 44, "show_outside": 4},
    "audio": {"ask_for": 34, "ask_for_two": 5, "show": 40, "show_outside": 4},
    "video": {"ask_for": 26, "show": 34, "show_outside": 4},
}
TALK, CROSSINGS, MIXTURES = 15, 66, 30
# How often a conversation begins with a scenario, and about what; as often another turn of one follows.
SCENARIO_SHARE = 0.6
ABOUT = {"mixture": 26, "correction": 14, "change": 10, "crossing": 24, "reading": 22, "new subject": 5, "plain": 9}
ABOUT |= {"refusal": 7, "limited": 4, "abilities": 3, "chat": 2}
LIMITED = 0.10  # of the other conversations allow some kinds of answer only
# In a chat people go on and on: how often for more than a few turns, and then for how many.
SHORT_TURNS, LONG_SHARE, LONG_TURNS = 4, 0.15, (5, 12)
DEV_WORDINGS = 50  # one in so many scenarios is kept for the development split
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Composer:
    """Makes conversations of one split.

    Args:
        setting: what they are made of.
        scenarios: written conversations.
    """

    def __init__(self, setting: Setting, scenarios: Collection[Scenario] = ()):
        self.setting = setting
        self.pictures, self.sounds = PictureTurns(setting), SoundTurns(setting)
        self.clips = ClipTurns(setting, self.pictures)
        self.crossings = CrossingTurns(setting, self.pictures, self.sounds, self.clips)
        self.talk = TalkTurns(setting, self.pictures, self.sounds, self.clips)
        every = {"image": self.pictures, "audio": self.sounds, "video": self.clips}
        self.of = {modality: turns for modality, turns in every.items() if modality in setting.media}
        self.fresh = {
            getattr(turns, name): weight for modality, turns in self.of.items() for name, weight in FRESH[modality].items()
        }
        self.fresh[self.talk.talk] = TALK * len(self.of)
        if self.crossings.crossings:
            self.fresh |= {self.crossings.show: CROSSINGS, self.crossings.mix: MIXTURES}
        self.scenarios = ScenarioTurns(self, list(scenarios)) if scenarios else None

    def conversation(self, rng: random.Random, long: float = 0.0) -> list[Turn]:
        """One to four turns; a share `long` of the conversations goes on for more."""
        turns: list[Turn] = []
        most = rng.randint(*LONG_TURNS) if rng.random() < long else SHORT_TURNS
        length = most if most > SHORT_TURNS else rng.choices(range(1, SHORT_TURNS + 1), (45, 33, 15, 7))[0]
        while len(turns) < length:
            try:
                turns += self._next_turns(rng, turns[-1], most - len(turns)) if turns else self._first_turns(rng)
            except NoSuchMedium:  # the split has no such combination: let the user want something else
                continue
        only = turns[0].only
        if self.scenarios and only is None and rng.random() < LIMITED:
            kinds = [kind for kind in self.setting.media if rng.random() < 0.5] or [rng.choice(self.setting.media)]
            only = ("text", *(kind for kind in self.setting.media if kind not in kinds))
        return turns if only is None else self._limited(rng, turns, only)

    def _limited(self, rng: random.Random, turns: list[Turn], only: tuple[str, ...]) -> list[Turn]:
        """The same where some kinds are allowed only, up to the first answer that is not, or promises one."""
        for number, turn in enumerate(turns):
            made = dict.fromkeys(modality_of(part.medium) for part in turn.assistant if isinstance(part, Made))
            said = " ".join(part for part in turn.assistant if isinstance(part, str))
            if not made and any(re.search(PROMISES[kind], said) for kind in PROMISES.keys() - only):
                if number:
                    turns = turns[:number]
                    break
                if turns[0].only is None:
                    return turns  # it would promise at once what is switched off
            if off := [kind for kind in made if kind not in only]:
                answer: list[Part] = [self.setting.replies.off(off, rng)]
                turns = [*turns[:number], Turn(turn.intent, turn.user, answer, checks=({"refuses": True},))]
                break
        return [turns[0]._replace(only=only), *turns[1:]]

    def turn(self, kind: str, rng: random.Random, medium: Medium | None = None) -> Turn:
        """One turn of a kind, to measure with.

        Args:
            kind: `image ask_for`, `audio describe`, `video show_outside` …; `change` (of the `medium`, attached or on the
                table); `image → audio` …; `draw_and_play` …; `outside_draw` … and the other turns of talk.
        """
        modality, _, name = kind.partition(" ")
        while True:
            try:
                if kind == "change":
                    return self.of[modality_of(medium)].change(rng, medium)
                if kind in self.crossings.crossings:
                    return self.crossings.show(rng, kind, refused=0)
                if modality in self.of:
                    return getattr(self.of[modality], name)(rng)
                if kind == "outside_question":
                    return self.talk.replied(rng, kind)
                if hasattr(self.crossings, kind):
                    return self.crossings.mix(rng, kind)
                return getattr(self.talk, kind)(rng)
            except NoSuchMedium:
                continue

    def change_shown(self, modality: str, rng: random.Random) -> Turn:
        """A medium of the user's own, to be changed."""
        while True:
            try:
                medium = self.of[modality].sample(rng)
                return self.of[modality].change(rng, medium, [self.setting.shown(rng, medium)])
            except NoSuchMedium:
                continue

    def _first_turns(self, rng: random.Random) -> list[Turn]:
        if self.scenarios and rng.random() < SCENARIO_SHARE:
            return self.scenarios.some(choose(rng, ABOUT), rng)
        if rng.random() < 0.02:
            return [self._any(rng).ask_without(rng)]
        return [choose(rng, self.fresh)(rng)]

    def _fresh(self, rng: random.Random) -> Turn:
        """A wish that has nothing to do with what was before."""
        if self.scenarios and rng.random() < SCENARIO_SHARE:
            about = choose(rng, {about: ABOUT[about] for about in ("mixture", "crossing", "reading", "plain", "refusal")})
            return self.scenarios.some(about, rng, most=1)[0]
        return choose(rng, self.fresh)(rng)

    def _any(self, rng: random.Random) -> MediaTurns:
        return self.pictures if len(self.of) == 1 else rng.choice(list(self.of.values()))

    def _next_turns(self, rng: random.Random, last: Turn, most: int) -> list[Turn]:
        if last.offer and rng.random() < 0.7:
            return [self.talk.answer_offer(rng, last.offer)]
        if last.medium is None:
            return [self._fresh(rng) if rng.random() < 0.7 else self.talk.talk(rng)]
        turns = self.of[modality_of(last.medium)]
        draw = rng.random()
        if draw < 0.5:
            return [turns.change(rng, last.medium)]
        if draw < 0.65:
            return [turns.ask(rng, last.medium)]
        if draw < 0.75:  # the medium stays on the table while people chat
            return [self.talk.talk(rng)._replace(medium=last.medium, offer=None)]
        if draw < 0.85 and self.crossings.kinds_from(last.medium):
            return [self.crossings.cross(rng, last.medium)]
        if self.scenarios and draw > 0.95 and most > 1:
            return self.scenarios.some("new subject", rng, most)
        return [self._fresh(rng)]


# -- lines ------------------------------------------------------------------------------------------------------


def caption_line(turns: list[Turn]) -> dict:
    """The conversation with the captions of its media."""
    return _line(turns, lambda shown: {"caption": shown.medium.caption if shown.medium else OUTSIDE_CAPTION})


def media_line(turns: list[Turn]) -> dict:
    """The conversation with the media that the user shows, and the captions of those that are made."""
    return _line(turns, lambda shown: {"path": shown.path})


def _line(turns: list[Turn], show: Callable[[Shown], dict]) -> dict:
    only = turns[0].only
    messages = [] if only is None else [_message("system", [_text(f"{SYSTEM_PROMPT} {answer_only(only)}")])]
    for turn in turns:
        user = [_text(part) if isinstance(part, str) else {"type": part.modality, **show(part)} for part in turn.user]
        assistant: list[dict] = []
        for part in turn.assistant:
            if isinstance(part, str):
                assistant.append(_text(f" {part}" if assistant else part))
            else:
                assistant.append({"type": modality_of(part.medium), **_caption(part)})
        messages += [_message("user", user), _message("assistant", assistant)]
    line = {"messages": messages, "intents": [turn.intent for turn in turns]}
    return line | ({"checks": turns[-1].checks} if turns[-1].checks else {})


def _caption(made: Made) -> dict:
    """What is taught of a medium: all of it; or where it is withheld the thing itself, and the rest is open."""
    return {"caption": made.medium[0], "open": True} if made.is_withheld else {"caption": made.medium.caption}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _message(role: str, content: list[dict]) -> dict:
    return {"role": role, "content": content}


def combinations(setting: Setting, modality: str) -> list[Medium]:
    """Every medium of the setting's split, in a fixed order."""
    match modality:
        case "image":
            media = itertools.starmap(Picture, itertools.product(setting.names, *PICTURE_VALUES.values()))
        case "audio":
            pitched = [name for name, instrument in setting.instruments.items() if instrument.pitched]
            effects = [Sound(name) for name in setting.instruments if name not in pitched]
            media = [*itertools.starmap(Sound, itertools.product(pitched, *SOUND_VALUES.values())), *effects]
        case "video":
            media = itertools.starmap(Clip, itertools.product(setting.filmed, MOTIONS))
    return [medium for medium in media if setting.permits(medium)]


def true_media(setting: Setting, modality: str) -> list[Medium]:
    """`combinations`, each in all its variants."""
    return [variant for medium in combinations(setting, modality) for variant in setting.variants(medium)]


# Which kind of media each of ten alignment lines in a row holds; pictures are by far the most.
ALIGNED = ("image", "audio", "image", "video", "image", "audio", "image", "audio", "image", "video")
ASKING = {"image": "Draw {}.", "audio": "Play {}.", "video": "Film {}."}


def _aligned(setting: Setting, index: int) -> tuple[str, int]:
    """The modality of an alignment line, and how many lines of it came before."""
    kinds = [modality for modality in ALIGNED if modality in setting.media]
    rounds, place = divmod(index, len(kinds))
    return kinds[place], rounds * kinds.count(kinds[place]) + kinds[:place].count(kinds[place])


def align_encoders_line(composer: Composer, media: dict[str, list[Medium]], index: int, rng: random.Random) -> dict:
    """A medium and its caption; every twelfth of its kind is one from outside the world."""
    setting = composer.setting
    modality, number = _aligned(setting, index)
    intent = composer.of[modality].describing
    text = roughen(rng.choice(setting.phrasings[intent]).text, rng)
    if number % 12 == 11 and (shown := setting.outside_shown(rng, modality)).path:
        answer = setting.replies.unknown(modality, rng)
    else:
        medium = media[modality][number % len(media[modality])]
        shown, answer = setting.shown(rng, medium), setting.replies.describe(medium, rng)
    return media_line([Turn(intent, with_shown(rng, [shown], text), [answer])])


def align_decoders_line(composer: Composer, media: dict[str, list[Medium]], index: int, rng: random.Random) -> dict:
    """A caption, or a plain request, and the medium."""
    setting = composer.setting
    modality, number = _aligned(setting, index)
    medium = media[modality][number % len(media[modality])]
    spoken = setting.spoken(medium)
    text = rng.choice((spoken, ASKING[modality].format(spoken), ""))
    if not text:
        text = roughen(composer.of[modality].request_for(rng, medium), rng, slips=0)
    return media_line([setting.make(ASKED[modality], rng, text, medium)])


ASKED = {"image": "draw", "audio": "play", "video": "film"}
LINES: dict[str, Callable[[Composer, dict[str, list[Medium]], int, random.Random], dict]] = {
    "text": lambda composer, media, index, rng: caption_line(composer.conversation(rng, LONG_SHARE)),
    "align_encoders": align_encoders_line,
    "align_decoders": align_decoders_line,
    "instruct": lambda composer, media, index, rng: media_line(composer.conversation(rng, LONG_SHARE)),
}
COUNTS = {"text": 60_000, "align_encoders": 20_000, "align_decoders": 40_000, "instruct": 40_000}  # of pictures alone
MORE = 2  # times as many where sounds and clips are talked about too
DEV_COUNT = 2_000


def make_lines(composer: Composer, kind: str, start: int, stop: int, seed: int = 0) -> Iterator[str]:
    """JSON lines number start … stop of one kind; each has its own generator, so that chunks can be made apart."""
    setting, media = composer.setting, {}
    for modality in setting.media if kind.startswith("align") else ():
        media[modality] = combinations(setting, modality)
        random.Random(seed).shuffle(media[modality])
    for index in range(start, stop):
        rng = random.Random(f"{seed}/{kind}/{setting.split}/{index}")
        yield json.dumps(LINES[kind](composer, media, index, rng), ensure_ascii=False)


def load_composer(
    world: Path,
    split: str = "train",
    outside_paths: list[str] | None = None,
    phrasings: Path = PHRASINGS,
    media: Collection[str] = MODALITIES,
    asks_withheld: bool = False,
) -> Composer:
    """A composer over a built world and the data beside this file. What lies outside the world is split by its name too.

    Args:
        outside_paths: files from outside the world, relative to the data folder.
        phrasings: their folder; where they are those that are learned from, scenarios are played too.
        media: the modalities that are talked about.
        asks_withheld: as in `Setting`.
    """
    learned = phrasings == PHRASINGS
    concepts, clips = load_concepts(world), ClipWorld(World(world)) if "video" in media else None
    instruments = load_instruments(world, concepts) if "audio" in media else {}
    concepts = {name: without_names_of_other_sounds(concept, instruments) for name, concept in concepts.items()}
    unseen, unheard = things_outside(concepts, instruments, split)
    return Composer(
        Setting(
            concepts=concepts,
            phrasings=load_phrasings(phrasings, media),
            replies=Replies(concepts, instruments),
            split=split,
            media=tuple(modality for modality in MODALITIES if modality in media),
            glosses=json.loads((DATA / "glosses.json").read_text(encoding="utf-8"))["glosses"],
            outside=unseen,
            outside_paths=outside_paths or [],
            instruments=instruments,
            outside_sounds=unheard,
            filmed=clips.names if clips else [],
            takes=SoundWorld(world).takes if "audio" in media else [],
            looks=clips.looks if clips else [],
            asks_withheld=asks_withheld,
        ),
        _scenarios_of(split) if learned and set(media) == set(MODALITIES) else (),
    )


def _scenarios_of(split: str) -> list[Scenario]:
    """One in `DEV_WORDINGS` scenarios, by its words, is met in the development split alone."""
    return [
        scenario
        for scenario in load_scenarios()
        if (zlib.crc32(scenario.text.encode()) % DEV_WORDINGS == 0) == (split == "dev")
    ]


# -- files ------------------------------------------------------------------------------------------------------


def _make_chunk(world: Path, media: tuple, kind: str, split: str, seed: int, span: tuple[int, int]) -> str:
    outside = [] if kind == "text" else outside_files(world, split, media)
    composer = load_composer(world, split, outside, media=media, asks_withheld=(kind, split) == ("text", "train"))
    return "".join(line + "\n" for line in make_lines(composer, kind, *span, seed=seed))


def write_dialogues(
    world: Path,
    out: Path,
    counts: dict[str, int],
    seed: int = 0,
    workers: int = 1,
    media: Collection[str] = MODALITIES,
) -> None:
    """Writes ``<kind>.jsonl`` and ``<kind>_dev.jsonl`` for each kind; the number of workers changes nothing."""
    out.mkdir(parents=True, exist_ok=True)
    for (kind, count), split in itertools.product(counts.items(), ("train", "dev")):
        count, name = (count, kind) if split == "train" else (min(count, DEV_COUNT), f"{kind}_dev")
        spans = [(start, min(start + 4_000, count)) for start in range(0, count, 4_000)]
        make = partial(_make_chunk, world, tuple(media), kind, split, seed)
        with ProcessPoolExecutor(workers) as pool, whole_file(out / f"{name}.jsonl") as beside:
            beside.write_text("".join(pool.map(make, spans)), encoding="utf-8")
        logger.info("%s: %d conversations", name, count)


def main() -> None:
    """Media files, then conversations."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, default=Path("runs/nano/world"))
    parser.add_argument("--out", type=Path, default=Path("runs/nano/data"))
    parser.add_argument("--kinds", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--media", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="what is talked about")
    parser.add_argument(
        "--count", type=int, help=f"of each kind (default: {COUNTS}, not of pictures alone {MORE} times as many)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; the files do not depend on it")
    parser.add_argument("--files", action="store_true", help="also write the pictures, sounds and clips of both splits")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if "image" not in args.media:
        parser.error("--media must hold image: sounds and clips are talked about beside pictures")
    if args.files:
        write_files(args.world, args.out, args.media)
    counts = {kind: args.count or COUNTS[kind] * (MORE if len(args.media) > 1 else 1) for kind in args.kinds}
    write_dialogues(args.world, args.out, counts, args.seed, args.workers, args.media)


if __name__ == "__main__":
    main()
