"""Turns that cross from one kind of media to another, and those whose answer holds two kinds.

"Play what this sounds like", "draw what you hear", "make it spin"; "draw a trumpet and play it".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from nextgpt.train.nano.dialogues.phrasings import fill, roughen
from nextgpt.train.nano.dialogues.turns import Offer, Part, Setting, Turn, choose, with_shown
from nextgpt.train.nano.dialogues.turns_clips import ClipTurns
from nextgpt.train.nano.dialogues.turns_pictures import PictureTurns
from nextgpt.train.nano.dialogues.turns_sounds import SoundTurns
from nextgpt.train.nano.world.things import Clip, Medium, Picture, Sound, modality_of

UNLINKED = 0.15  # of the wishes cannot be granted, for the thing has no sound, no picture or no clip
ALL_BESIDE, ALL_AT_END = 0.0, 1.0


class Crossing(NamedTuple):
    """From one kind of media to another: how its turn is made, from what, and the things with which it can be done."""

    make: Callable[[random.Random, Medium, list[Part] | None], Turn]
    source: PictureTurns | SoundTurns | ClipTurns
    granted: list[str]
    every: list[str]
    weight: int


class CrossingTurns:
    """Makes turns from one kind of media to another.

    Args:
        setting: what they are made of.
        pictures, sounds, clips: make the single media.
    """

    def __init__(self, setting: Setting, pictures: PictureTurns, sounds: SoundTurns, clips: ClipTurns):
        self.setting, self.pictures, self.sounds, self.clips = setting, pictures, sounds, clips
        names, filmed, heard = setting.names, setting.filmed, list(setting.instruments)
        sounding = [name for name in filmed if name in setting.sound_of]
        to_film = [sound for sound, concept in setting.concept_of.items() if concept in filmed]
        every = {
            "image → audio": Crossing(self.sound_of_shown, pictures, list(setting.sound_of), names, 5),
            "image → video": Crossing(self.film_of_shown, pictures, filmed, names, 5),
            "audio → image": Crossing(self.picture_of_heard, sounds, list(setting.concept_of), heard, 7),
            "audio → video": Crossing(self.film_of_heard, sounds, to_film, heard, 5),
            "video → image": Crossing(self.picture_of_filmed, clips, filmed, filmed, 6),
            "video → audio": Crossing(self.sound_of_shown, clips, sounding, filmed, 4),
        }
        self.crossings = {
            kind: crossing
            for kind, crossing in every.items()
            if set(kind.split(" → ")) <= set(setting.media) and crossing.granted
        }
        mixtures = {
            self.draw_and_play: ("audio", 4),
            self.play_and_draw: ("audio", 4),
            self.draw_and_film: ("video", 4),
            self.film_and_play: ("video", 2),
        }
        self.mixtures = {make: weight for make, (modality, weight) in mixtures.items() if modality in setting.media}
        if not sounding or "audio" not in setting.media:
            self.mixtures.pop(self.film_and_play, None)

    def kinds_from(self, medium: Medium) -> dict[str, int]:
        """The crossings that start from such a medium, with their weights."""
        start = modality_of(medium)
        return {kind: crossing.weight for kind, crossing in self.crossings.items() if kind.startswith(start)}

    def cross(self, rng: random.Random, medium: Medium) -> Turn:
        """A crossing from the medium on the table."""
        return self.crossings[choose(rng, self.kinds_from(medium))].make(rng, medium, None)

    def show(self, rng: random.Random, kind: str | None = None, refused: float = UNLINKED) -> Turn:
        """A medium of the user's own, and a wish for another kind: "image → audio" …

        Args:
            refused: share of the wishes that cannot be granted.
        """
        kind = kind or choose(rng, {name: crossing.weight for name, crossing in self.crossings.items()})
        crossing = self.crossings[kind]
        others = [name for name in crossing.every if name not in crossing.granted]
        name = rng.choice(others if others and rng.random() < refused else crossing.granted)
        source = crossing.source.sample(rng, **{"name" if kind.startswith("audio") else "concept": name})
        return crossing.make(rng, source, [self.setting.shown(rng, source)])

    # -- one kind after another ---------------------------------------------------------------------------------

    def sound_of_shown(self, rng: random.Random, seen: Picture | Clip, shown: list[Part] | None = None) -> Turn:
        """ "play what this sounds like" """
        text = rng.choice(self.setting.phrasings["sound_of_shown"]).text
        text = fill(text, self.pictures.concept_values(rng, Picture(seen.concept)))
        if seen.concept not in self.setting.sound_of:
            why = self.setting.no_sound_of(self.setting.concepts[seen.concept], rng)
            return self._refuse("sound_of_shown", rng, text, why, seen, shown)
        sound = self._sound_of(rng, seen.concept)
        text = roughen(self.sounds.tell(rng, text, sound), rng)
        return self.setting.make("sound_of_shown", rng, text, sound, shown=shown)

    def film_of_shown(self, rng: random.Random, picture: Picture, shown: list[Part] | None = None) -> Turn:
        """ "make it spin" """
        clip = Clip(picture.concept, self.clips.motion(rng))
        text = self.clips.request(rng, rng.choice(self.setting.phrasings["film_of_shown"]), clip)
        if picture.concept not in self.setting.filmed:
            why = self.setting.no_clip_of(self.setting.concepts[picture.concept], rng)
            return self._refuse("film_of_shown", rng, text, why, picture, shown)
        clip = self.setting.find(lambda: clip, derived=True)
        return self.setting.make("film_of_shown", rng, roughen(text, rng), clip, shown=shown)

    def picture_of_heard(self, rng: random.Random, sound: Sound, shown: list[Part] | None = None) -> Turn:
        """ "draw what you hear" """
        return self._draw("picture_of_heard", rng, sound, self.setting.concept_of.get(sound.name), shown)

    def picture_of_filmed(self, rng: random.Random, clip: Clip, shown: list[Part] | None = None) -> Turn:
        """ "a still of it, please" """
        return self._draw("picture_of_filmed", rng, clip, clip.concept, shown)

    def _draw(self, intent: str, rng: random.Random, medium: Medium, concept: str | None, shown: list[Part] | None) -> Turn:
        picture = self.pictures.sample(rng, derived=True, concept=concept or self.setting.names[0])
        text = self.pictures.request(rng, rng.choice(self.setting.phrasings[intent]), picture, ALL_AT_END)
        if concept is None:
            why = f"I hear {self.setting.instruments[medium.name].indefinite}, but I can't draw that: I only know the sound."
            return self._refuse(intent, rng, text, why, medium, shown)
        return self.setting.make(intent, rng, roughen(text, rng), picture, shown=shown)

    def film_of_heard(self, rng: random.Random, sound: Sound, shown: list[Part] | None = None) -> Turn:
        """ "film what makes this sound, bouncing" """
        concept = self.setting.concept_of.get(sound.name)
        motion = self.clips.motion(rng)
        text = fill(rng.choice(self.setting.phrasings["film_of_heard"]).text, self.clips.motion_values(rng, motion))
        if concept in self.setting.filmed:
            clip = self.setting.find(lambda: Clip(concept, motion), derived=True)
            return self.setting.make("film_of_heard", rng, roughen(text, rng), clip, shown=shown)
        why = f"I hear {self.setting.instruments[sound.name].indefinite}, but I can't film that"
        offer = None if concept is None else Offer("image", concept)
        if offer is None:
            return self._refuse("film_of_heard", rng, text, f"{why}: I only know the sound.", sound, shown)
        why = f"{why}. Shall I draw {self.setting.concepts[concept].indefinite} instead?"
        return self._refuse("film_of_heard", rng, text, why, sound, shown)._replace(offer=offer)

    def _refuse(
        self, intent: str, rng: random.Random, text: str, why: str, medium: Medium, shown: list[Part] | None
    ) -> Turn:
        return Turn(intent, with_shown(rng, shown, roughen(text, rng)), [why.strip()], medium)

    def _sound_of(self, rng: random.Random, concept: str, **fixed: str) -> Sound:
        return self.sounds.sample(rng, derived=True, name=self.setting.sound_of[concept], **fixed)

    # -- two kinds in one answer --------------------------------------------------------------------------------

    def mix(self, rng: random.Random, intent: str | None = None) -> Turn:
        """Two kinds of media in one answer."""
        makers = {make: weight for make, weight in self.mixtures.items() if intent in (None, make.__name__)}
        return choose(rng, makers)(rng)

    def _concept(self, rng: random.Random, among: list[str]) -> str:
        """A thing with a sound, seldom one without."""
        silent = rng.random() < UNLINKED
        return rng.choice([name for name in among if (name not in self.setting.sound_of) == silent])

    def draw_and_play(self, rng: random.Random) -> Turn:
        """ "draw a trumpet and play it" """
        picture = self.pictures.sample(rng, concept=self._concept(rng, self.setting.names))
        text = self.pictures.request(rng, rng.choice(self.setting.phrasings["draw_and_play"]), picture, ALL_BESIDE)
        if picture.concept not in self.setting.sound_of:
            return self._only_seen("draw_and_play", rng, text, picture)
        sound = self._sound_of(rng, picture.concept)
        return self.setting.make("draw_and_play", rng, roughen(self.sounds.tell(rng, text, sound), rng), picture, sound)

    def play_and_draw(self, rng: random.Random) -> Turn:
        """ "play a trumpet, then draw it on blue" """
        picture = self.pictures.sample(rng, concept=self._concept(rng, self.setting.names))
        text = self.pictures.request(rng, rng.choice(self.setting.phrasings["play_and_draw"]), picture, ALL_AT_END)
        if picture.concept not in self.setting.sound_of:
            return self._only_seen("play_and_draw", rng, text, picture)
        sound = self._sound_of(rng, picture.concept, register="middle", figure="single note")
        return self.setting.make("play_and_draw", rng, roughen(text, rng), sound, picture)

    def draw_and_film(self, rng: random.Random) -> Turn:
        """ "draw a cat, then make it spin" """
        picture = self.pictures.sample(rng, concept=rng.choice(self.setting.filmed))
        clip = self.clips.sample(rng, derived=True, concept=picture.concept)
        motions = self.clips.motion_values(rng, clip.motion, self.setting.concepts[clip.concept].is_plural)
        phrasing = rng.choice(self.setting.phrasings["draw_and_film"])
        text = self.pictures.request(rng, phrasing, picture, ALL_BESIDE, motions)
        return self.setting.make("draw_and_film", rng, roughen(text, rng), picture, clip)

    def film_and_play(self, rng: random.Random) -> Turn:
        """ "show me a bell bouncing, and its sound" """
        clip = self.clips.sample(rng, concept=self._concept(rng, self.setting.filmed))
        text = self.clips.request(rng, rng.choice(self.setting.phrasings["film_and_play"]), clip)
        if clip.concept not in self.setting.sound_of:
            return self._only_seen("film_and_play", rng, text, clip)
        sound = self._sound_of(rng, clip.concept)
        return self.setting.make("film_and_play", rng, roughen(self.sounds.tell(rng, text, sound), rng), clip, sound)

    def _only_seen(self, intent: str, rng: random.Random, text: str, medium: Picture | Clip) -> Turn:
        """A thing that can be shown, and the word that its sound is not known."""
        turn = self.setting.make(intent, rng, roughen(text, rng), medium)
        why = self.setting.no_sound_of(self.setting.concepts[medium.concept], rng).strip()
        return turn._replace(assistant=[*turn.assistant, why])
