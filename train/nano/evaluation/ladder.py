"""The ladder: each part of nano measured alone, from the ground up, so that a weak row of the table is traced to its rung.

`nextgpt evaluate nano --ladder` measures the parts of a model's folder; with `--root runs/nano` those that are still in the
making. A chain is as good as its lowest rung: the products along the paths stand below the rungs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt import NextGPTPipeline
from nextgpt.decoders import DECODERS, Decoder
from nextgpt.decoders.sources import read_json
from nextgpt.decoders.vocoder import GriffinLimVocoder
from nextgpt.encoders import load_encoder
from nextgpt.errors import UserInputError
from nextgpt.events import Media
from nextgpt.train.nano import assemble
from nextgpt.train.nano.dialogues.composer import DATA, Composer, caption_line, combinations, load_composer, true_media
from nextgpt.train.nano.evaluation.bench import Bench, expected_parts
from nextgpt.train.nano.evaluation.classifiers import FOLDERS
from nextgpt.train.nano.evaluation.reconstruct import reconstruct, vocoder_of
from nextgpt.train.nano.evaluation.rows import CROSSING_BAR, MADE_BARS, NAMED_BARS, media_to_text, text_to_media
from nextgpt.train.nano.evaluation.scores import Score
from nextgpt.train.nano.models.autoencoder import load as load_autoencoder
from nextgpt.train.nano.models.decoder import KINDS, VOCODER
from nextgpt.train.nano.models.initial import embed_media
from nextgpt.train.nano.world.things import MAIN, PARTS, Medium, Sound

CLASSIFIER_BARS = {"image": 0.985, "audio": 0.97, "video": 0.985}
THERE_AND_BACK, SMALL_THERE_AND_BACK, DRAWN, PROJECTED = 0.01, 0.02, 0.01, 0.02  # how much a rung may lose
PSNR_BAR = 30.0  # dB
READING_BAR, KIND_BAR, CONTENT_BAR = 0.97, 0.99, 0.97
LEARNED_FROM = 3_000  # true media of the training split, at most, from which a linear reading is learned
BATCH = 32


class Ladder:
    """Measures the parts that lie in a folder, each alone.

    Args:
        root: holds `world`, the classifiers, the encoder, the decoders and the language model, each in its folder.
        count: media or questions a rung.
        split: `dev` for tuning, `heldout` for the final table.
        seed: of what is drawn.
        pipeline: of the whole model, for what the projections cost; without it that rung is left out.
    """

    def __init__(
        self, root: Path, count: int = 120, split: str = "dev", seed: int = 0, pipeline: NextGPTPipeline | None = None
    ):
        self.root, self.count, self.split, self.seed, self.pipeline = root, count, split, seed, pipeline
        self.scores: dict[str, list[Score]] = {}
        self.decoders: dict[str, Decoder] = {}

    def measure(self, rung: str) -> list[Score]:
        """A rung's figures; it is measured once."""
        if rung not in self.scores:
            self.scores[rung] = RUNGS[rung](self)
        return self.scores[rung]

    def share(self, rung: str, part: str) -> float | None:
        """The share of a part on a rung; None where it was not measured."""
        found = [score for score in self.measure(rung) if score.part == part and not score.note]
        return found[0].share if found else None

    # -- parts --------------------------------------------------------------------------------------------------

    def part(self, name: str) -> Path:
        """The folder of a part. Raises MissingPart."""
        if not self.holds(name):
            raise MissingPart(f"{self.root} holds no {name}")
        return self.root / name

    def holds(self, name: str) -> bool:
        """Whether a part is there; where its making has only begun, its folder is empty."""
        return (self.root / name).is_dir() and any((self.root / name).iterdir())

    @cached_property
    def composer(self) -> Composer:
        """Asks about this split in the test phrasings."""
        return load_composer(self.part("world"), self.split, [], DATA)

    @cached_property
    def bench(self) -> Bench:
        """Renders true media."""
        return Bench(self.pipeline, self.count, self.split, self.seed, self.root)

    def decoder(self, modality: str) -> Decoder:
        """The decoder of a modality, of whichever kind lies there; it is loaded once."""
        if modality not in self.decoders:
            folder = self.part(assemble.DECODERS[modality][1])
            pipeline = read_json(str(folder), "model_index.json", None)["_class_name"]
            kind = next(kind for kind in DECODERS.values() if (kind.pipeline_class, kind.modality) == (pipeline, modality))
            self.decoders[modality] = kind(str(folder))
        return self.decoders[modality]

    def autoencoder(self, modality: str) -> nn.Module:
        """The decoder's; where there is no decoder yet, the one that it will get."""
        if self.holds(assemble.DECODERS[modality][1]):
            return self.decoder(modality).pipeline.vae
        return load_autoencoder(self.part(KINDS[modality].parts[0]), torch.device("cpu"))

    def vocoder(self) -> nn.Module:
        """The sound decoder's; where there is no decoder yet, the one that it will get."""
        if self.holds(assemble.DECODERS["audio"][1]):
            return vocoder_of(self.decoder("audio"))
        return GriffinLimVocoder(VOCODER)

    @cached_property
    def true_media(self) -> dict[str, list[Medium]]:
        """By modality, media of the split that the folder can render; effects, which are in every split, are left out."""
        chosen = {}
        for modality in FOLDERS:
            media = [m for m in true_media(self.composer.setting, modality) if m.split == self.split and self.bench.holds(m)]
            chosen[modality] = random.Random(self.seed).sample(media, min(len(media), self.count))
        return chosen

    def read(self, row: str, modality: str, media: Iterable[Media], bars: dict[str, float | None]) -> list[Score]:
        """What the classifier reads in media that should show `true_media`, part by part; small pictures once more.

        Args:
            bars: part → its bar, of the small ones as `concept, small`.
        """
        expected = self.true_media[modality]
        self.part(FOLDERS[modality])
        found = self.bench.look(modality, list(media))
        pairs = [(expected_parts(medium), reading) for medium, reading in zip(expected, found, strict=True)]
        scores = [_score(row, part, part, pairs, bars) for part in PARTS[modality]]
        if modality == "image":
            small = [pair for pair in pairs if pair[0]["size"] == "small"]
            scores += [_score(row, f"{part}, small", part, small, bars) for part in ("concept", "style")]
        return scores

    def below(self, rung: str, loses: float, small_loses: float | None = None) -> dict[str, float]:
        """Bars: what a rung reached, less what the next one may lose."""
        return {
            score.part: score.share - (small_loses if small_loses and "small" in score.part else loses)
            for score in self.measure(rung)
            if score.count
        }


class MissingPart(LookupError):
    """A part that a rung measures is not in the folder."""


def _score(row: str, name: str, part: str, pairs: list[tuple[dict, dict]], bars: dict[str, float | None]) -> Score:
    right = sum(expected[part] == found.get(part) for expected, found in pairs)
    return Score(row, name, right, len(pairs), bars.get(name))


# -- rungs ------------------------------------------------------------------------------------------------------


def classifier(ladder: Ladder, modality: str) -> list[Score]:
    """The classifier on true media."""
    bar = CLASSIFIER_BARS[modality]
    bars = dict.fromkeys(PARTS[modality], bar)
    true = [ladder.bench.render(medium) for medium in ladder.true_media[modality]]
    return ladder.read(f"classifier, {modality}", modality, true, bars)


def there_and_back(ladder: Ladder, modality: str) -> list[Score]:
    """True media through the decoder's autoencoder, and for sounds the vocoder, without any denoising."""
    true = [ladder.bench.render(medium) for medium in ladder.true_media[modality]]
    again = reconstruct(true, ladder.autoencoder(modality), ladder.vocoder() if modality == "audio" else None)
    bars = ladder.below(f"classifier-{modality}", THERE_AND_BACK, SMALL_THERE_AND_BACK)
    scores = ladder.read(f"there and back, {modality}", modality, again, bars)
    if modality != "image":
        return scores
    errors = [
        np.square(np.asarray(a, float) - np.asarray(b, float)).mean() / 255**2 for a, b in zip(true, again, strict=True)
    ]
    decibels = float(np.mean([-10 * np.log10(max(error, 1e-10)) for error in errors]))
    return [*scores, Score("there and back, image", "PSNR", bar=PSNR_BAR, quantity=decibels, unit="dB", more_is_better=True)]


def vocoder(ladder: Ladder) -> list[Score]:
    """The vocoder on the spectrograms of true sounds."""
    true = [ladder.bench.render(medium) for medium in ladder.true_media["audio"]]
    again = reconstruct(true, None, ladder.vocoder())
    return ladder.read("vocoder", "audio", again, ladder.below("classifier-audio", THERE_AND_BACK))


def decoder(ladder: Ladder, modality: str) -> list[Score]:
    """The decoder, from its own text encoder."""
    media = ladder.true_media[modality]
    decode, made = ladder.decoder(modality), []
    for start in range(0, len(media), BATCH):
        captions = [medium.caption for medium in media[start : start + BATCH]]
        made += decode.generate(decode.encode(captions), seeds=range(start, start + len(captions)))
    bars = ladder.below(f"there-and-back-{modality}", DRAWN)
    return ladder.read(f"decoder, {modality}", modality, made, bars)


def encoder(ladder: Ladder, modality: str) -> list[Score]:
    """Linear readings of the encoder's embeddings of true media, learned from the training split."""
    row = f"encoder, {modality}"
    setting = load_composer(ladder.part("world"), "train", [], DATA).setting
    taught = [
        variant
        for medium in combinations(setting, modality)
        if medium.split == "train" and ladder.bench.holds(medium) and not (isinstance(medium, Sound) and not medium.register)
        for variant in setting.variants(medium)
    ]
    if not taught:
        return [Score(row, note="left out: the folder holds nothing of the training split; --root names one that does")]
    taught = random.Random(ladder.seed).sample(taught, min(len(taught), LEARNED_FROM))
    network = load_encoder(ladder.part("encoder"), dtype=torch.float32)
    known, seen = (
        embed_media(network, modality, map(ladder.bench.render, media)) for media in (taught, ladder.true_media[modality])
    )
    scores = []
    for part in PARTS[modality]:
        names = sorted({expected_parts(medium)[part] for medium in taught})
        targets, true = (
            torch.tensor([names.index(expected_parts(medium)[part]) for medium in media])
            for media in (taught, ladder.true_media[modality])
        )
        right = linear_reading(known, targets, len(names))(seen).argmax(1) == true
        scores.append(Score(row, part, int(right.sum()), len(true), READING_BAR))
    return scores


def linear_reading(embeddings: Tensor, targets: Tensor, count: int, rounds: int = 60) -> nn.Linear:
    """Multinomial logistic regression: embeddings `[N, D]` → logits of `count` values, with a little weight decay."""
    reading = nn.Linear(embeddings.shape[1], count)
    nn.init.zeros_(reading.weight)
    optimizer = torch.optim.LBFGS(reading.parameters(), max_iter=rounds, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(reading(embeddings), targets) + 1e-5 * reading.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return reading.eval()


def language_model(ladder: Ladder) -> list[Score]:
    """The language model in words alone, media given and announced by their captions: the kind of answer, the content."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nextgpt.train.nano.evaluation.words import measure

    folder = ladder.part("language_model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generators = (random.Random(f"{ladder.seed}/{ladder.split}/words/{number}") for number in range(3 * ladder.count))
    conversations = (caption_line(ladder.composer.conversation(rng)) for rng in generators)
    found = measure(network, tokenizer, conversations, ladder.part("world"))["words"]
    bars, row = {"kind": KIND_BAR, "content": CONTENT_BAR}, "language model, words alone"
    return [Score(row, part, round(found[part] * found["of"]), found["of"], bar) for part, bar in bars.items()]


def projections(ladder: Ladder, modality: str) -> list[Score]:
    """What the projections cost: the whole model beside the decoder and the encoder alone."""
    if ladder.pipeline is None:
        return [Score(f"projections, {modality}", note="left out: the folder holds no whole model")]
    scores = []
    for measured, rung in ((text_to_media, f"decoder-{modality}"), (media_to_text, f"encoder-{modality}")):
        bars = ladder.below(rung, PROJECTED)
        for score in measured(ladder.bench, modality):
            scores.append(Score(score.row, score.part, score.right, score.count, bars.get(score.part)))
    return scores


def _rungs() -> dict[str, Callable[[Ladder], list[Score]]]:
    every = {}

    def add(name: str, rung: Callable, *modalities: str) -> None:
        for modality in modalities:
            every[f"{name}-{modality}"] = lambda ladder, modality=modality: rung(ladder, modality)

    add("classifier", classifier, *PARTS)
    every["vocoder"] = vocoder
    add("there-and-back", there_and_back, *PARTS)
    add("decoder", decoder, *PARTS)
    add("encoder", encoder, *PARTS)
    every["language-model"] = language_model
    add("projections", projections, *PARTS)
    return every


RUNGS = _rungs()


def check_rungs(rungs: Iterable[str] | None) -> list[str]:
    """The rungs to measure, all by default. Raises UserInputError where there is no such rung."""
    rungs = list(rungs or RUNGS)
    if unknown := [rung for rung in rungs if rung not in RUNGS]:
        raise UserInputError(f"--rung {unknown[0]}: there is no such rung; the rungs are {', '.join(RUNGS)}")
    return rungs


def climb(ladder: Ladder, rungs: Iterable[str] | None = None) -> Iterator[tuple[str, list[Score]]]:
    """Rung by rung: its name and its figures. A rung whose part is not there is left out, and a line says so.

    Raises:
        UserInputError: there is no such rung.
    """
    for rung in check_rungs(rungs):
        try:
            yield rung, ladder.measure(rung)
        except MissingPart as missing:
            ladder.scores[rung] = [Score(rung, note=f"left out: {missing}")]
            yield rung, ladder.scores[rung]


# -- paths ------------------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """A row of the table, the rungs that carry it with the parts that are read on them, and its bar."""

    row: str
    rungs: tuple[tuple[str, str], ...]
    bar: float


def links() -> list[Link]:
    """The rows that lead from words to media, from media to words, and from one kind of media to another."""
    words, found = ("language-model", "content"), []
    for modality, parts in PARTS.items():
        for part in (part for part in parts if part in MADE_BARS[modality]):
            found.append(
                Link(f"text → {modality}: {part}", (words, (f"decoder-{modality}", part)), MADE_BARS[modality][part])
            )
            found.append(
                Link(f"{modality} → text: {part}", ((f"encoder-{modality}", part), words), NAMED_BARS[modality][part])
            )
    for start, end in ((a, b) for a in PARTS for b in PARTS):
        rungs = (f"encoder-{start}", MAIN[start]), words, (f"decoder-{end}", MAIN[end])
        found.append(Link(f"{start} → {end}: {MAIN[end]}", rungs, CROSSING_BAR))
    return found


def paths(ladder: Ladder) -> str:
    """The product of the rungs along each path, beside the bar of the row that it must carry, as a Markdown table.

    Paths with a rung that was not measured are left out.
    """
    lines = ["| path | rungs | product | the row's bar | |", "|---|---|---|---|---|"]
    for link in links():
        if any(rung not in ladder.scores for rung, _ in link.rungs):
            continue
        shares = [ladder.share(rung, part) for rung, part in link.rungs]
        if None in shares:
            continue
        product = math.prod(shares)
        told = " × ".join(f"{rung} {100 * share:.1f}" for (rung, _), share in zip(link.rungs, shares, strict=True))
        verdict = "carries it" if product >= link.bar else "cannot carry it"
        lines.append(f"| {link.row} | {told} | {100 * product:.1f}% | {100 * link.bar:.0f}% | {verdict} |")
    return "\n".join(lines) if len(lines) > 2 else ""
