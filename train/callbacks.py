"""A callback that writes sample answers while training runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from nextgpt.decoders import Decoder
from nextgpt.events import Reply
from nextgpt.hardware import is_out_of_memory
from nextgpt.hub.loading import load_frozen_decoder
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.dataset import ChatCollator, ChatDataset
from nextgpt.train.data.files import json_line

logger = logging.getLogger(__name__)

SAMPLES_FOLDER = "samples"
MAX_NEW_TOKENS = 64
SEED = 0  # of every picture, so that those of different steps can be compared


class SampleAnswers(TrainerCallback):
    """Answers the last turn of a few conversations of the data now and then, and after the last step.

    The answers go to the log, to `samples/step-<n>` in the run's folder and, where tensorboard is on, there.

    Args:
        dataset, collator: where the conversations and their frozen features come from.
        processor: of the model.
        steps: between two times.
        count: how many conversations, evenly spread over the data.
        make_media: run the decoders on what the answers' signal tokens became.
    """

    def __init__(
        self,
        dataset: ChatDataset,
        collator: ChatCollator,
        processor: NextGPTProcessor,
        *,
        steps: int,
        count: int,
        make_media: bool,
    ):
        self.dataset, self.collator, self.processor = dataset, collator, processor
        self.steps, self.make_media = steps, make_media
        self.chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=int).tolist()
        self.decoders: dict[str, Decoder] = {}
        self.board: TensorBoardCallback | None = None

    def use_tensorboard(self, callbacks: list[TrainerCallback]) -> None:
        """Writes to the same tensorboard log as the trainer."""
        self.board = next((each for each in callbacks if isinstance(each, TensorBoardCallback)), None)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: NextGPTForConditionalGeneration = None, **kwargs: Any
    ) -> None:
        due = self.steps and (state.global_step % self.steps == 0 or state.global_step >= state.max_steps)
        if not due or not state.is_world_process_zero:
            return
        try:
            self._answer_all(model, args, state.global_step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no memory for sample answers beside the training: none from here on (sample_steps=0)")
            self.steps = 0
            self.decoders.clear()
        finally:
            model.train()

    @torch.no_grad()
    def _answer_all(self, model: NextGPTForConditionalGeneration, args: Any, step: int) -> None:
        folder = Path(args.output_dir) / SAMPLES_FOLDER / f"step-{step}"
        model.eval()
        # Sampling draws from no generator of the training; should a library do, it draws from a copy.
        kind = args.device.type
        with torch.random.fork_rng(devices=[] if kind == "cpu" else None, device_type=kind):
            for number, index in enumerate(self.chosen):
                example = self.dataset[index]
                question, reply = self._answer(model, example)
                files = reply.save(folder, f"answer-{number}")
                asked = {"id": example["id"], "prompt": question}
                (folder / f"question-{number}.json").write_bytes(json_line(asked))
                pictures = ", ".join(str(file) for file in files[:-1])
                logger.info("step %d, %s → %r %s", step, question[-80:].strip(), reply.text, pictures)
                self._to_board(number, question, reply, step)

    def _answer(self, model: NextGPTForConditionalGeneration, example: dict[str, Any]) -> tuple[str, Reply]:
        answered = np.flatnonzero((example["labels"] != IGNORED_LABEL).numpy())
        turns = np.flatnonzero(np.diff(answered, prepend=-2) > 1)  # where an answer begins
        prompt = example["input_ids"][: answered[turns[-1]]][None]  # [1, length]
        shown = example["inputs"][: int(model.get_placeholder_mask(prompt).sum())]
        features = torch.stack(self.collator.input_features(shown)).to(model.device) if shown else None
        prompt = prompt.to(model.device)
        output = model.generate_interleaved(
            prompt,
            torch.ones_like(prompt),
            media_features=features,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        runs = iter(output.runs)
        content = []
        for part in self.processor.decode_parts(output.sequences[0]):
            if part["type"] == "text":
                content.append(part)
            elif self.make_media:
                content.append(self._make(model, next(runs)))
        words = self.processor.tokenizer.decode(prompt[0], skip_special_tokens=False)
        return words, Reply({"role": "assistant", "content": content}, finished=output.finished[0])

    def _make(self, model: NextGPTForConditionalGeneration, run: Any) -> dict:
        conditioning = model.project(run.modality, run.hidden_states[None], run.token_embeddings[None])
        media = self._decoder(model, run.modality).generate(conditioning, seeds=[SEED])[0]
        return {"type": run.modality, run.modality: media, "seed": SEED}

    def _decoder(self, model: NextGPTForConditionalGeneration, modality: str) -> Decoder:
        if modality not in self.decoders:
            known = model.decoders.get(modality)
            self.decoders[modality] = known or load_frozen_decoder(model.config, modality, model.device)
        return self.decoders[modality]

    def _to_board(self, number: int, question: str, reply: Reply, step: int) -> None:
        writer = self.board.tb_writer if self.board else None
        if writer is None:
            return
        writer.add_text(f"samples/{number}", f"{question} → **{reply.text}**", step)
        for index, image in enumerate(reply.images):
            writer.add_image(f"samples/{number}-{index}", np.asarray(image), step, dataformats="HWC")
