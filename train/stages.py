"""The three stages (NExT-GPT, sections 4 and 5): what each trains, and the way from a configuration to a saved model.

The losses are the model's, the loop is transformers' `Trainer`'s.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer, set_seed

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.modeling_nextgpt import TRAINED_FILE, NextGPTModel
from nextgpt.parts import fetch_model
from nextgpt.processing_nextgpt import PROCESSOR_FILE, NextGPTProcessor
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data import ChatCollator, ChatDataset
from nextgpt.train.features import gather_features

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """What a stage trains (groups of `NextGPTModel.train_only`) and which side's media it cannot do without."""

    trains: tuple[str, ...]
    needs: str | None


STAGES = {
    "align_encoders": Stage(("input_projection",), needs="input"),
    "align_decoders": Stage(("output_projections", "signal_rows"), needs="output"),
    "instruct": Stage(("input_projection", "output_projections", "signal_rows", "lora"), needs=None),
}


def run_stage(stage: str, config: TrainingConfig) -> Path:
    """Trains one stage and saves the model and its processor in `config.output_dir`.

    Args:
        stage: `align_encoders`, `align_decoders` or `instruct`.

    Returns:
        The folder, for `NextGPTModel.from_pretrained`.

    Raises:
        NextGPTError: a setting, a data file, a media file or a model is not what it should be.
    """
    arguments = config.training_arguments()
    if arguments.n_gpu > 1:
        raise UserInputError(f"{arguments.n_gpu} accelerators are visible to one process: use `accelerate launch -m`")
    set_seed(arguments.seed)
    model, processor = load_for_training(config)
    dataset = ChatDataset(
        config.data,
        processor,
        max_length=config.max_length or model.config.text_config.max_position_embeddings,
        needs=STAGES[stage].needs,
        needs_output_files=config.denoising,
        workers=config.tokenizing_workers,
    )
    with arguments.main_process_first(desc="frozen features"):
        features = gather_features(
            dataset,
            model,
            processor,
            config.features,
            device=arguments.device,
            batch_size=config.feature_batch_size,
            denoising=config.denoising,
        )
    model.encoder = nn.Module()  # its features are there: the frozen encoder need not travel to the device
    model.train_only(STAGES[stage].trains)
    trainer = StageTrainer(
        processor,
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=ChatCollator(processor.tokenizer.pad_token_id, features),
    )
    logger.info("%s: %d conversations, %s trained", stage, len(dataset), ", ".join(STAGES[stage].trains))
    trainer.train(resume_from_checkpoint=_checkpoint(config))
    trainer.save_model()
    trainer.save_state()
    return Path(config.output_dir)


def load_for_training(config: TrainingConfig) -> tuple[NextGPTModel, NextGPTProcessor]:
    """The model that training starts from, its trained parts in fp32 whatever the dtype of the frozen ones."""
    location = fetch_model(config.model)
    model_config = NextGPTConfig.from_pretrained(location)
    model_config.loss_weights = model_config.loss_weights | config.loss_weights
    model = NextGPTModel.from_parts(model_config, dtype=getattr(torch, config.dtype))
    if (location / TRAINED_FILE).is_file():
        model.load_trained(location)
    else:
        logger.info("%s holds no %s: the trained parts start afresh", location, TRAINED_FILE)
    model.get_base_model().config.use_cache = False  # nothing is generated here
    if (location / PROCESSOR_FILE).is_file():
        return model, NextGPTProcessor.from_pretrained(location)
    return model, NextGPTProcessor.from_config(model_config)


def _checkpoint(config: TrainingConfig) -> str | None:
    """The checkpoint to go on from. `trainer_state.json` is written last, so a folder without it is incomplete."""
    if not config.resume:
        return None
    if config.resume not in ("auto", True):
        return str(config.resume)
    complete = [file.parent for file in Path(config.output_dir).glob("checkpoint-*/trainer_state.json")]
    if not complete:
        return None
    last = max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))
    logger.info("Resuming from %s; `resume=false` starts anew", last)
    return str(last)


class StageTrainer(Trainer):
    """A `Trainer` whose checkpoints hold only what is trained, and whose log names the parts of the loss."""

    def __init__(self, processor: NextGPTProcessor, **kwargs: Any):
        super().__init__(**kwargs)
        self.processor = processor  # not as `processing_class`: the Trainer would change the model's special tokens
        self._loss_parts: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        for name, part in outputs.losses.items():
            self._loss_parts[name].append(part.detach())  # read at the next log only, so the device is not waited for
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {f"loss/{name}": torch.stack(parts).mean().item() for name, parts in self._loss_parts.items()}
            self._loss_parts.clear()
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: the `Trainer` would walk through all parameters at every step of a small model."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)


def main(stage: str, arguments: Sequence[str] | None = None) -> None:
    """The command of one stage: `--config FILE [key=value ...]`. A user's mistake ends it with one line and code 2."""
    description = f"Trains {', '.join(STAGES[stage].trains)}."
    parser = argparse.ArgumentParser(prog=f"python -m nextgpt.train.{stage}", description=description)
    parser.add_argument("--config", required=True, help="YAML file; examples stand in train/configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        folder = run_stage(stage, TrainingConfig.from_file(options.config, options.overrides))
    except (NextGPTError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    logger.info("saved in %s", folder)
