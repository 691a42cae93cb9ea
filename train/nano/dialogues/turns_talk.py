"""Turns without media: small talk, what things are, and wishes that the world cannot grant, each met with an offer."""

from __future__ import annotations

import random
import re

from nextgpt.media.text import listed
from nextgpt.train.nano.dialogues.phrasings import Phrasing, fill, roughen
from nextgpt.train.nano.dialogues.turns import Offer, Setting, Turn, choose
from nextgpt.train.nano.dialogues.turns_clips import ClipTurns
from nextgpt.train.nano.dialogues.turns_pictures import PictureTurns
from nextgpt.train.nano.dialogues.turns_sounds import SoundTurns
from nextgpt.train.nano.world.things import PICTURE_VALUES, PLURALS, Clip, Picture

CANNOT = (
    *("I can't {0} {1}: it is not in my little world. ", "Sorry, I don't know how to {0} {1}. ", "I can't {0} {1}, sorry. "),
    *(
        "I'm afraid I can't {0} {1}. ",
        "I don't know {1}, so I can't {0} that. ",
        "Sorry, {1} is not among the things I know. ",
    ),
    *(
        "I never learned to {0} {1}, sorry. ",
        "I wish I could {0} {1}, but I can't. ",
        "Sorry, I can't {0} {1}: I don't know it. ",
    ),
    *("I'm not able to {0} {1}, sorry. ", "Sorry, I haven't learned {1} yet. ", "That's beyond me: I can't {0} {1}. "),
)
OFFERS = (
    *(
        "Shall I {}{}?",
        "Shall I {}{}?",
        "Would you like me to {}{}?",
        "I could {}{}.",
        "Should I {}{}?",
        "But I could {}{}.",
    ),
    *("Do you want me to {}{}?", "Could I {}{}?", "If you like, I can {}{}."),
)
IN_SHORT = {
    "image": "I know animals, plants, food, vehicles, places, instruments, tools, clothes and everyday things.",
    "audio": "I can play instruments, and noises such as birdsong, the sea, a telephone or a helicopter.",
    "video": "In my clips things slide, spin, bounce, grow or shrink.",
}
DECLINED = (
    *(
        "All right. What would you like to {} instead?",
        "Okay. What would you like to {}?",
        "No problem. Just tell me what to do.",
    ),
    *("Fine with me. What else would you like to {}?", "As you like. Anything else?", "Okay, something else then?"),
)
UNKNOWN = (
    *(
        "I don't know that: I only know my little world of {}. Shall I draw you something?",
        "Sorry, I don't know about that.",
    ),
    *(
        "I can't help with that, I only know {}.",
        "That's beyond me, sorry. I know {}, little else.",
        "I'm afraid I don't know.",
    ),
    *("I can't say, sorry. My world is small: {}.", "Sorry, that's not something I know.", "No idea, sorry. I only do {}."),
)
_VERBS = {"film": "film|clip|video|movie|animat|move|gif", "play": "play|hear|sound|listen|noise|music"}
DECLINING = ("no", "no thanks", "nope", "nah", "no thank you", "not that", "rather not", "never mind", "no, leave it")
SCENES = (
    *("riding", "eating", "fighting", "chasing", "hugging", "dancing with", "playing with", "in love with", "holding"),
    *("talking to", "jumping over", "made of", "wearing", "kissing", "painting", "inside", "being chased by"),
)

# Motions that no clip shows: participle, bare verb, third person.
OUTSIDE_MOTIONS = tuple(
    tuple(words.split("/"))
    for words in (
        *("dancing/dance/dances", "running/run/runs", "walking/walk/walks", "swimming/swim/swims", "flying/fly/flies"),
        *("sleeping/sleep/sleeps", "eating/eat/eats", "laughing/laugh/laughs", "singing/sing/sings", "crying/cry/cries"),
        *("fighting/fight/fights", "waving/wave/waves", "talking/talk/talks", "driving/drive/drives"),
        *("exploding/explode/explodes", "skating/skate/skates", "climbing/climb/climbs", "smiling/smile/smiles"),
        *("surfing/surf/surfs", "burning/burn/burns", "blinking/blink/blinks", "melting/melt/melts"),
        *("doing a backflip/do a backflip/does a backflip", "opening a door/open a door/opens a door"),
        *("playing football/play football/plays football", "falling asleep/fall asleep/falls asleep"),
        *("changing colour/change colour/changes colour", "clapping/clap/claps", "hiding/hide/hides"),
    )
)


class TalkTurns:
    """Makes turns without media.

    Args:
        setting: what they are made of.
        pictures, sounds, clips: fill the slots of wishes.
    """

    def __init__(self, setting: Setting, pictures: PictureTurns, sounds: SoundTurns, clips: ClipTurns):
        self.setting, self.pictures, self.sounds, self.clips = setting, pictures, sounds, clips
        self.makers = {self.replied: 40, self.define: 26, self.outside_draw: 28, self.outside_scene: 6}
        if "audio" in setting.media:
            self.makers |= {self.outside_play: 13, self.unplayable: 9, self.undrawable: 5}
        if "video" in setting.media:
            self.makers |= {self.outside_film: 9, self.unfilmable: 8, self.outside_motion: 6}

    def talk(self, rng: random.Random) -> Turn:
        """Any of these."""
        return choose(rng, self.makers)(rng)

    # -- answers in words ---------------------------------------------------------------------------------------

    def replied(self, rng: random.Random, intent: str | None = None) -> Turn:
        """Small talk, what it can do, its world, questions beyond it: the teachers' own answers."""
        intents = ("smalltalk", "capability", "about_world", "outside_question")
        intent = intent or rng.choices(intents, (40, 20, 15, 25))[0]
        phrasing = rng.choice(self.setting.phrasings[intent])
        thing = rng.choice(self.setting.outside)[0]
        reply = phrasing.reply or self._unknown_answer(rng)
        for what, known in (("things", "names"), ("sounds", "instruments"), ("filmed", "filmed")):
            reply = reply.replace(f"{{number_of_{what}}}", str(len(getattr(self.setting, known))))
        values = {"thing": thing} | self.pictures.concept_values(rng, Picture(rng.choice(self.setting.names)))
        return Turn(intent, [roughen(fill(phrasing.text, values), rng)], [reply])

    def _unknown_answer(self, rng: random.Random) -> str:
        return rng.choice(UNKNOWN).format(listed([PLURALS[modality] for modality in self.setting.media]))

    def cannot(self, rng: random.Random, request: str, thing: str) -> str:
        """That something is not known, after the words of the request."""
        verb = next((verb for verb, pattern in _VERBS.items() if re.search(pattern, request, re.IGNORECASE)), "draw")
        return rng.choice(CANNOT).format(verb, theirs(thing)).strip()

    def define(self, rng: random.Random) -> Turn:
        """ "A cat is a small furry pet that purrs and catches mice." """
        concept = self.setting.concepts[rng.choice(self.setting.names)]
        while concept.name not in self.setting.glosses:
            concept = self.setting.concepts[rng.choice(self.setting.names)]
        phrasing = rng.choice(self.setting.phrasings["define"])
        text = fill(phrasing.text, self.pictures.concept_values(rng, Picture(concept.name)))
        subject = concept.indefinite[:1].upper() + concept.indefinite[1:]
        is_ = "are" if concept.is_plural else "is"
        return Turn("define", [roughen(text, rng)], [f"{subject} {is_} {self.setting.glosses[concept.name]}."])

    # -- offers -------------------------------------------------------------------------------------------------

    def offering(self, intent: str, rng: random.Random, text: str, why: str, offer: Offer, instead: str = "") -> Turn:
        """A wish that is not granted, and what is near."""
        match offer.modality:
            case "image":
                proposal = f"draw {self.setting.concepts[offer.name].indefinite}"
            case "audio":
                proposal = f"play {self.setting.instruments[offer.name].indefinite}"
            case "video":
                proposal = f"show {self.setting.concepts[offer.name].indefinite} {offer.motion}"
        return Turn(intent, [roughen(text, rng)], [why + rng.choice(OFFERS).format(proposal, instead)], offer=offer)

    def answer_offer(self, rng: random.Random, offer: Offer) -> Turn:
        """Yes or no to what was offered."""
        if rng.random() < 0.25:
            answer = rng.choice(DECLINED).format("hear" if offer.modality == "audio" else "see")
            return Turn("decline", [roughen(rng.choice(DECLINING), rng)], [answer])
        return {"image": self.pictures, "audio": self.sounds, "video": self.clips}[offer.modality].accept(rng, offer)

    # -- wishes that the world cannot grant ---------------------------------------------------------------------

    def outside_draw(self, rng: random.Random) -> Turn:
        """A picture of what the world lacks."""
        phrasing = rng.choice(self.setting.phrasings["outside_draw"])
        thing, near = rng.choice(self.setting.outside)
        if unheard := rng.random() < 0.25:
            thing = unheard_thing(rng)
        picture = Picture("", *(rng.choice(values) for values in PICTURE_VALUES.values()))
        text = fill(phrasing.text, self.pictures.attribute_values(rng, picture) | {"thing": thing})
        if unheard or "thing" not in phrasing.slots:
            return Turn(
                "outside_draw", [roughen(text, rng)], [rng.choice(CANNOT).format("draw", "that") + IN_SHORT["image"]]
            )
        why = rng.choice(CANNOT).format("draw", theirs(thing))
        return self.offering("outside_draw", rng, text, why, Offer("image", near), " instead")

    def outside_scene(self, rng: random.Random) -> Turn:
        """ "a cat riding a bus": it draws one thing at a time."""
        actor = self.setting.concepts[rng.choice(self.setting.names)]
        other = rng.choice(
            (self.setting.concepts[rng.choice(self.setting.names)].indefinite, rng.choice(self.setting.outside)[0])
        )
        scene = f"{actor.indefinite} {rng.choice(SCENES)} {other}"
        phrasing = self._phrasing(rng, "outside_draw")
        why = "I can't draw scenes, only one thing at a time. "
        return self.offering("outside_draw", rng, fill(phrasing.text, {"thing": scene}), why, Offer("image", actor.name))

    def outside_play(self, rng: random.Random) -> Turn:
        """A sound that the world lacks."""
        phrasing = rng.choice(self.setting.phrasings["outside_play"])
        thing, near = rng.choice(self.setting.outside_sounds)
        if rng.random() < 0.35:
            thing, near = rng.choice((unheard_thing(rng), rng.choice(self.setting.outside)[0])), ""
        text = fill(phrasing.text, {"thing": thing})
        if not near or "thing" not in phrasing.slots:
            answer = rng.choice(CANNOT).format("play", "that") + IN_SHORT["audio"]
            return Turn("outside_play", [roughen(text, rng)], [answer])
        why = rng.choice(CANNOT).format("play", theirs(thing))
        return self.offering("outside_play", rng, text, why, Offer("audio", near), " instead")

    def unplayable(self, rng: random.Random) -> Turn:
        """ "play a banana": it can be drawn, and nobody knows its sound."""
        silent = [name for name in self.setting.names if name not in self.setting.sound_of]
        concept = self.setting.concepts[rng.choice(silent)]
        thing = self.pictures.concept_values(rng, Picture(concept.name))["a_concept"]
        text = fill(self._phrasing(rng, "outside_play").text, {"thing": thing})
        why = self.setting.no_sound_of(concept, rng)
        return self.offering("outside_play", rng, text, why, Offer("image", concept.name), " instead")

    def undrawable(self, rng: random.Random) -> Turn:
        """ "draw a harp": it can be heard, but not seen."""
        seen = {*self.setting.concept_of, *self.setting.concepts}
        unseen = [name for name in self.setting.instruments if name not in seen]
        instrument = self.setting.instruments[rng.choice(unseen)]
        text = fill(self._phrasing(rng, "outside_draw").text, {"thing": instrument.indefinite})
        why = f"I can't draw {instrument.indefinite}: I only know the sound. "
        return self.offering("outside_draw", rng, text, why, Offer("audio", instrument.name), " instead")

    def outside_film(self, rng: random.Random) -> Turn:
        """A clip of what the world lacks."""
        phrasing = rng.choice(self.setting.phrasings["outside_film"])
        thing, near = rng.choice(self.setting.outside)
        if rng.random() < 0.25:
            thing, near = unheard_thing(rng), ""
        motion = self.clips.motion(rng)
        text = fill(phrasing.text, {"thing": thing} | self.clips.motion_values(rng, motion))
        offered = Clip(near, motion)
        if near not in self.setting.filmed or "thing" not in phrasing.slots or not self.setting.permits(offered):
            answer = rng.choice(CANNOT).format("film", "that") + IN_SHORT["video"]
            return Turn("outside_film", [roughen(text, rng)], [answer])
        why = rng.choice(CANNOT).format("film", theirs(thing))
        return self.offering("outside_film", rng, text, why, Offer("video", offered.concept, offered.motion), " instead")

    def unfilmable(self, rng: random.Random) -> Turn:
        """ "a trumpet, spinning": it can be drawn, but there are no clips of it."""
        concept = self.setting.concepts[rng.choice([name for name in self.setting.names if name not in self.setting.filmed])]
        phrasing, clip = rng.choice(self.setting.phrasings["film"]), Clip(concept.name, self.clips.motion(rng))
        text, why = self.clips.request(rng, phrasing, clip), self.setting.no_clip_of(concept, rng)
        return self.offering("outside_film", rng, text, why, Offer("image", concept.name), " instead")

    def outside_motion(self, rng: random.Random) -> Turn:
        """ "a cat dancing": the thing is known, its motion is not."""
        clip = self.clips.sample(rng)
        concept = self.setting.concepts[clip.concept]
        motion, move, moves = rng.choice(OUTSIDE_MOTIONS)
        phrasing = rng.choice(self.setting.phrasings["film"])
        values = {"motion": motion, "move": move, "moves": move if concept.is_plural else moves}
        text = fill(phrasing.text, self.pictures.concept_values(rng, Picture(concept.name)) | values)
        why = f"I can't make {concept.it} {move}: in my clips things slide, spin, bounce, grow or shrink. "
        return self.offering("outside_film", rng, text, why, Offer("video", clip.concept, clip.motion))

    def _phrasing(self, rng: random.Random, intent: str) -> Phrasing:
        return rng.choice([p for p in self.setting.phrasings[intent] if p.slots == {"thing"}])


def theirs(thing: str) -> str:
    """Their thing, as the assistant says it: "my dog" → "your dog"."""
    return re.sub(r"^my\b", "your", re.sub(r"^(me|myself)$", "you", thing))


def unheard_thing(rng: random.Random) -> str:
    """A word that nobody has heard: "a spolker". Words alone do not make a thing of the world."""
    starts = ("b", "br", "d", "fl", "gr", "k", "l", "m", "n", "pl", "s", "sp", "t", "v", "z")
    ends = ("b", "ck", "d", "ffer", "g", "lk", "mp", "nd", "ng", "nker", "r", "ssel", "t", "x", "zzle")
    word = "".join(rng.choice(starts) + rng.choice("aeiou") for _ in range(rng.choice((1, 1, 2)))) + rng.choice(ends)
    return rng.choice((f"a {word}", f"a {word}", word, f"the {word}"))
