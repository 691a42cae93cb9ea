"""Turns about clips: asking for one, describing, naming, asking about and changing the one on the table."""

from __future__ import annotations

import random

from nextgpt.train.nano.dialogues.phrasings import MOTION_SLOTS, SECOND_SLOTS, Phrasing, fill, roughen
from nextgpt.train.nano.dialogues.turns import (
    ACCEPTING,
    MediaTurns,
    Offer,
    Part,
    Setting,
    Turn,
    append,
    reply_about,
    with_shown,
)
from nextgpt.train.nano.dialogues.turns_pictures import PictureTurns
from nextgpt.train.nano.world.clips import MOTIONS
from nextgpt.train.nano.world.things import MOTIONS_SAID, Clip, Picture

NO_CLIP_ANSWERS = (
    "I don't see a clip yet. Attach one, or ask me for one.",
    "I don't see a clip here. Could you attach it?",
    "There's nothing attached, sorry. I don't see a clip.",
    "I don't see a clip. Please attach one.",
)

SHARE_OF_FIRST = 0.65
CHANGED_TOO = ("and {}", "but {}", "{} this time", "this time {}")


class ClipTurns(MediaTurns):
    """Makes turns about clips.

    Args:
        setting: what they are made of.
        pictures: says the things' names.
    """

    describing = "watch_describe"

    def __init__(self, setting: Setting, pictures: PictureTurns):
        super().__init__(setting)
        self.pictures = pictures

    # -- filming ------------------------------------------------------------------------------------------------

    def motion(self, rng: random.Random) -> str:
        """Any motion."""
        return rng.choice(list(MOTIONS))

    def sample(self, rng: random.Random, derived: bool = False, **fixed: str) -> Clip:
        """A clip of this split."""

        def draw() -> Clip:
            return Clip(**{"concept": rng.choice(self.setting.filmed), "motion": self.motion(rng), **fixed})

        return self.setting.find(draw, derived)

    def ask_for(self, rng: random.Random) -> Turn:
        """A wish for a clip."""
        clip = self.sample(rng)
        if rng.random() < 0.05:
            concept = self.setting.concepts[clip.concept]
            words = concept.say(rng), self.motion_values(rng, clip.motion)[rng.choice(("motion", "move"))]
            text = rng.choice((", ", " ")).join(words) + rng.choice((" clip", " video", ", video", " gif"))
        else:
            text = self.request_for(rng, clip)
        return self.setting.make("film", rng, roughen(text, rng), clip)

    def request_for(self, rng: random.Random, clip: Clip) -> str:
        """A plain wish for a clip, in words."""
        return self.request(rng, rng.choice(self.setting.phrasings["film"]), clip)

    def request(self, rng: random.Random, phrasing: Phrasing, clip: Clip) -> str:
        """A phrasing filled."""
        return fill(phrasing.text, self.values(rng, clip))

    def values(self, rng: random.Random, clip: Clip) -> dict[str, str]:
        """The slots of a thing and of its motion."""
        motions = self.motion_values(rng, clip.motion, self.setting.concepts[clip.concept].is_plural)
        return motions | self.pictures.concept_values(rng, Picture(clip.concept))

    def motion_values(self, rng: random.Random, motion: str, is_plural: bool = False) -> dict[str, str]:
        """The three slots of a motion; of several things "they spin", not "they spins"."""
        first, *others = MOTIONS_SAID[motion]
        participle, move, moves = first if rng.random() < SHARE_OF_FIRST else rng.choice(others)
        return {"motion": participle, "move": move, "moves": move if is_plural else moves}

    def accept(self, rng: random.Random, offer: Offer) -> Turn:
        """ "yes please": the clip that was offered."""
        return self.setting.make("accept", rng, roughen(rng.choice(ACCEPTING), rng), Clip(offer.name, offer.motion))

    # -- a clip on the table ------------------------------------------------------------------------------------

    def ask(self, rng: random.Random, clip: Clip, shown: list[Part] | None = None) -> Turn:
        """A question about a clip."""
        intents = {"watch_describe": 33, "watch_name": 25, "ask_motion": 25, "yes_no_concept": 17}
        intent = rng.choices(list(intents), list(intents.values()))[0]
        asked = clip
        if intent == "yes_no_concept" and rng.random() < 0.5:
            asked = self.sample(rng, derived=True)
        phrasings = self.setting.neutral.get(intent) or self.setting.phrasings[intent]
        if shown and intent in NEUTRAL and rng.random() < 0.2:
            phrasings = self.setting.neutral[NEUTRAL[intent]] or phrasings
        text = roughen(fill(rng.choice(phrasings).text, self.values(rng, asked)), rng)
        answer = reply_about(self.setting.replies, intent, clip, asked, rng)
        return Turn(intent, with_shown(rng, shown, text), [answer], clip)

    def change(self, rng: random.Random, clip: Clip, shown: list[Part] | None = None) -> Turn:
        """ "now make it bounce", "the same with a dog": the clip on the table with one thing changed or both, or none."""
        if rng.random() < 0.06 and self.setting.neutral["again"]:
            text = fill(rng.choice(self.setting.neutral["again"]).text, self.values(rng, clip))
            return self.setting.make("again", rng, roughen(text, rng), clip, shown=shown)
        parts = rng.choices((("motion",), ("concept",), ("concept", "motion")), (50, 35, 15))[0]
        choices = {"concept": self.setting.filmed, "motion": list(MOTIONS)}
        changed = self.setting.changed(rng, clip, {part: choices[part] for part in parts})
        intent = "change_motion" if parts == ("motion",) else "change_filmed"
        phrasing = rng.choice(self.setting.phrasings[intent])
        named = changed if "concept" in parts and not phrasing.slots & SECOND_SLOTS else clip
        values = self.values(rng, named._replace(motion=changed.motion))
        values |= {f"{slot}_2": value for slot, value in self.values(rng, changed).items()}
        text = fill(phrasing.text, values)
        if len(parts) == 2:
            text = append(text, rng.choice(CHANGED_TOO).format(values["motion"]), rng)
        return self.setting.make(intent, rng, roughen(text, rng), changed, shown=shown, was=clip)

    # -- nothing to see -----------------------------------------------------------------------------------------

    def show_outside(self, rng: random.Random) -> Turn:
        """A clip that is none of the world's."""
        intent = rng.choice(("watch_describe", "watch_name", "watch_describe", "watch_name", "ask_motion", "change_motion"))
        phrasing = rng.choice([p for p in self.setting.phrasings[intent] if p.slots <= MOTION_SLOTS | {"the_concept"}])
        text = fill(phrasing.text, {"the_concept": "it"} | self.motion_values(rng, self.motion(rng)))
        shown: list[Part] = [self.setting.outside_shown(rng, "video")]
        return Turn("outside_clip", with_shown(rng, shown, roughen(text, rng)), [self.setting.replies.unknown("video", rng)])

    def ask_without(self, rng: random.Random) -> Turn:
        """A question about a clip where there is none."""
        intent = rng.choice(("watch_describe", "watch_describe", "watch_name"))
        text = rng.choice(self.setting.phrasings[intent]).text
        return Turn("no_clip", [roughen(text, rng)], [rng.choice(NO_CLIP_ANSWERS)])


NEUTRAL = {"watch_describe": "describe", "watch_name": "name"}
