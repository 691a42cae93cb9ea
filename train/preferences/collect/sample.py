"""Asks a model each prompt several times, with seeds that are kept, and saves what it answers, media beside."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nextgpt.errors import ContractError, ModelLoadError, NextGPTError, UserInputError
from nextgpt.events import MAX_SEED, GenerationOptions
from nextgpt.modalities import MODALITIES
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.train.instruct_data.material import fingerprint
from nextgpt.train.judge.answers import saved_answer, state_of
from nextgpt.train.preferences.collect.answers import SampledAnswers, read_prompts, write_answers
from nextgpt.train.preferences.pairs import KINDS, prompt_key, read_kinds

ANSWERS_FILE = "answers.jsonl"
LEAST = 2  # answers to a prompt; one has nothing to be preferred to


@dataclass(frozen=True)
class SampleSettings:
    """How a model is asked.

    Args:
        count: answers to a prompt.
        temperature, top_p: of the LLM's tokens.
        max_new_tokens: of an answer.
        only: kinds that are made, text among them, where a question does not name its own in `output_modalities`; None: all.
        steps, guidance_scale: of each medium; None: the decoder's own.
        seed: another one, other answers.
        at_a_time: answers that are made together.
    """

    count: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    only: Sequence[str] | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    at_a_time: int = 8

    def options(self) -> dict[str, Any]:
        """As the pipeline takes them, but for the seed."""
        media = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "output_modalities": self.only,
            **{modality: dict(media) for modality in MODALITIES},
        }


def sample(
    model: str,
    questions: str | Path,
    out: str | Path,
    settings: SampleSettings,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Path:
    """Writes `answers.jsonl` into the folder `out`; answers that an earlier run made are not made again.

    Each answer's seed follows from the prompt, its number and the run's seed, so more answers or prompts can be asked for
    later. Other settings or other weights answer into a folder of their own there.

    Args:
        model: preset, folder or Hub repository.
        questions: JSON-lines file of chat messages; what else stands in a line goes on into `answers.jsonl`.

    Returns:
        The file.

    Raises:
        UserInputError: something given is not what it should be.
        NextGPTError: an answer cannot be written; the same command goes on from there.
    """
    out = Path(out)
    if settings.count < LEAST:
        raise UserInputError(f"{settings.count} answers to a prompt, expected {LEAST} or more, to be compared")
    # What is wrong with them is said before the model loads.
    GenerationOptions.from_keywords(settings.options())
    read_kinds({"only": None if settings.only is None else list(settings.only)}, "only")
    prompts = read_prompts(Path(questions))
    for row in prompts:
        if settings.only is not None and row.output_modalities is None:
            row.columns[KINDS] = list(settings.only)
    folder = out / f"answers-{fingerprint([state_of(model), settings.options(), settings.seed])}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sampler = _Sampler(model, device, dtype, folder, settings)
        sampler.make([(row, number) for row in prompts for number in range(settings.count)])
        for row in prompts:
            row.seeds = [sampler.seed(row, number) for number in range(settings.count)]
            row.answers = [sampler.answer(row, number) for number in range(settings.count)]
        write_answers(out / ANSWERS_FILE, prompts)
    except ModelLoadError:
        raise
    except OSError as error:
        raise NextGPTError(
            f"{out}: cannot be written ({error.strerror or error}); make room, or name another folder with --out: the same "
            "command goes on where it stopped"
        ) from None
    return out / ANSWERS_FILE


class _Sampler:
    """Makes the answers that are not there yet; the model loads when the first of them is asked for."""

    def __init__(self, model: str, device: str, dtype: str, folder: Path, settings: SampleSettings):
        self.model, self.device, self.dtype, self.folder, self.settings = model, device, dtype, folder, settings

    def name(self, row: SampledAnswers, number: int) -> str:
        only, own = self.settings.only, row.output_modalities
        kinds = "" if own is None or own == list(only or ()) else f"-{'+'.join(own)}"
        return f"{prompt_key(row.prompt, exactly=True)}{kinds}-{number}"

    def seed(self, row: SampledAnswers, number: int) -> int:
        return random.Random(f"{self.settings.seed}/{self.name(row, number)}").randrange(MAX_SEED)

    def saved(self, row: SampledAnswers, number: int) -> dict | None:
        """What was saved of an answer; None where it is not there."""
        return saved_answer(self.folder / f"{self.name(row, number)}.json")

    def answer(self, row: SampledAnswers, number: int) -> dict:
        """What was answered, with the paths of media; `finished` is false where the model did not end it itself."""
        saved = self.saved(row, number)
        content = saved["message"]["content"]
        parts = [part | {"path": str(self.folder / part["path"])} if "path" in part else part for part in content]
        return {"role": "assistant", "content": parts} | ({} if saved["finished"] else {"finished": False})

    def make(self, wanted: Sequence[tuple[SampledAnswers, int]]) -> None:
        """Makes what is missing; several at a time, for the pipeline answers calls together."""
        names = {self.name(row, number): (row, number) for row, number in wanted}  # a prompt that stands twice, once
        missing = [(row, number) for row, number in names.values() if self.saved(row, number) is None]
        with tqdm(desc="Answering", total=len(names), initial=len(names) - len(missing), unit=" answers") as bar:
            if not missing:
                return
            pipeline = NextGPTPipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
            options = self.settings.options()

            def each(row: SampledAnswers, number: int) -> None:
                try:
                    kinds = {KINDS: row.output_modalities}
                    reply = pipeline(row.prompt, seed=self.seed(row, number), **options | kinds)
                except (UserInputError, ContractError) as error:
                    raise UserInputError(f"{row.where}: {self.model} cannot answer it ({error})") from None
                reply.save(self.folder, self.name(row, number))
                bar.update()

            pool = ThreadPoolExecutor(self.settings.at_a_time)
            try:
                running = [pool.submit(each, *one) for one in missing]
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:
                pool.shutdown(cancel_futures=True)
                pipeline.close()
