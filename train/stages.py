"""The three stages (NExT-GPT, sections 4 and 5): what each trains, and the way from a configuration to a saved model.

The losses are the model's, the loop is transformers' `Trainer`'s, as `nextgpt.train.trainer` has it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from nextgpt.adapters import title
from nextgpt.checkpoint import group_name
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.hardware import is_out_of_memory, training_attention
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.callbacks import SampleAnswers
from nextgpt.train.card import write_card
from nextgpt.train.checkpoints import check_identity, checkpoints, set_aside, written_whole
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatCollator, ChatDataset, Reader, TrainingFeatures
from nextgpt.train.data.features import gather_features
from nextgpt.train.data.sampler import EpochSampler
from nextgpt.train.data.store import SKIPPED_FILE
from nextgpt.train.projection_trainer import PROJECTIONS_ALONE, ProjectionTrainer
from nextgpt.train.run_metadata import fingerprint_model, finished_metadata, run_identity, write_metadata, write_start
from nextgpt.train.start import load_for_training
from nextgpt.train.trainer import StageTrainer, TrainingStopped

logger = logging.getLogger(__name__)

WORTH_WORKERS = 5_000_000  # bytes of data; less is tokenized before a process has started
STRATEGIES = ("random", "sequential", "group_by_length")


class Stage(NamedTuple):
    """What a stage trains, and on what.

    Args:
        trains: groups of the model's `train_only`.
        needs: the side whose media it cannot do without.
        open_dataset, make_trainer: in place of this module's, with the same arguments.
        captions: whether it learns from what the text encoders say of captions.
        keeps_encoder: whether it encodes media while it trains.
        prepare_model: changes the model, given it and the settings, before anything is trained.
    """

    trains: tuple[str, ...]
    needs: str | None
    open_dataset: Callable[..., ChatDataset] | None = None
    make_trainer: Callable[..., StageTrainer] | None = None
    captions: bool = True
    keeps_encoder: bool = False
    prepare_model: Callable[..., None] | None = None


STAGES = {
    "align_encoders": Stage(("input_projection",), needs="input"),
    "align_decoders": Stage(("output_projections", "signal_rows"), needs="output"),
    "instruct": Stage(("input_projection", "output_projections", "signal_rows", "adapter"), needs=None),
}


def run_stage(stage: str, config: TrainingConfig, plan: Stage | None = None) -> Path:
    """Trains one stage and saves the model and its processor in `config.output_dir`.

    Args:
        stage: `align_encoders`, `align_decoders` or `instruct`; or another name, of what `plan` says.

    Returns:
        The folder, for `NextGPTForConditionalGeneration.from_pretrained`.

    Raises:
        NextGPTError: a setting, a data file, a media file or a model is not what it should be.
    """
    plan = plan or STAGES[stage]
    arguments = config.training_arguments()
    if arguments.n_gpu > 1:
        raise UserInputError(f"{arguments.n_gpu} accelerators are visible to one process: use `accelerate launch -m`")
    trains = trained_groups(stage, config, plan)
    if config.decoders and "output_projections" not in trains:
        raise UserInputError(f"decoders gives other decoders, whose output projections {stage} would leave untrained")
    if Path(config.output_dir).is_file():
        raise UserInputError(f"output_dir is {config.output_dir}, which is a file: name a folder")
    _check_order(config, arguments.train_sampling_strategy)
    set_seed(arguments.seed)
    model, processor = load_for_training(config)
    if plan.prepare_model is not None:
        plan.prepare_model(model, config)
    _check_precision(model, trains, config)
    with arguments.main_process_first(desc="data and frozen features"):
        first = arguments.local_process_index == 0
        dataset = (plan.open_dataset or open_dataset)(stage, config, model.config, processor, retry=first)
        features = frozen_features(config, model, processor, dataset, arguments.device, plan)
    _report_skipped(dataset, Path(config.output_dir))
    model.train_only(trains)
    model.config.trained_groups = sorted({*(model.config.trained_groups or ()), *trains})
    fingerprint = fingerprint_model(model.config, dataset.hashes)
    identity = run_identity(stage, config, arguments, dataset, fingerprint)
    make_trainer = plan.make_trainer or _trainer
    trainer = make_trainer(stage, config, arguments, model, processor, dataset, features, identity)
    checkpoint = _checkpoint(config, identity, is_main=arguments.should_save)
    if arguments.should_save:
        write_start(config.output_dir, stage, config, arguments, dataset, identity, checkpoint)
    logger.info("%s: %d conversations, %s trained", stage, len(dataset), ", ".join(trains))
    _train(trainer, checkpoint)
    if arguments.should_save:
        with written_whole(config.output_dir) as folder:
            trainer.save_model(str(folder))
            metadata = finished_metadata(config.output_dir, folder, model.config, trainer.state)
            write_card(folder, model.config, metadata)
        write_metadata(config.output_dir, metadata)  # last: it says that all the rest is there
    trainer.save_state()
    return Path(config.output_dir)


def trained_groups(stage: str, config: TrainingConfig, plan: Stage | None = None) -> tuple[str, ...]:
    """What a run trains: all that its stage does, or those that `trains` names.

    Raises:
        UserInputError: `trains` names nothing, or something else; or `learning_rates` a part that the stage does not train.
    """
    groups, chosen = (plan or STAGES[stage]).trains, config.trains
    if others := [part for part in config.learning_rates if group_name(part) not in groups]:
        raise UserInputError(f"learning_rates names {others[0]}: {stage} trains {', '.join(groups)}")
    if chosen is None:
        return groups
    named = [group_name(group) for group in chosen] if isinstance(chosen, list) else []
    if not named or any(group not in groups for group in named):
        raise UserInputError(f"trains is {chosen!r}, expected a list of some of {', '.join(groups)}, which {stage} trains")
    return tuple(group for group in groups if group in named)


def _check_precision(model: NextGPTForConditionalGeneration, trains: Sequence[str], config: TrainingConfig) -> None:
    """LN tuning trains copies of the LLM's own layers, in its dtype: small steps beside large weights would be lost."""
    parameters = (parameter for group in trains for parameter in model.group_parameters(group).values())
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        raise UserInputError(
            f"dtype is {config.dtype}, in which the {title(model.config.adapter)} adapter would be trained too: give "
            "dtype=float32 (bf16=true computes in half precision all the same)"
        )


def _check_order(config: TrainingConfig, strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise UserInputError(f"train_sampling_strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if config.data_weights and strategy == "sequential":
        raise UserInputError("train_sampling_strategy=sequential takes the files as they stand: leave data_weights out")


def open_dataset(
    stage: str, config: TrainingConfig, model_config: NextGPTConfig, processor: NextGPTProcessor, *, retry: bool = True
) -> ChatDataset:
    """The conversations that a stage learns from; `retry` as for `ChatDataset`."""
    reader = Reader(
        processor,
        max_length=config.max_length or model_config.max_positions,
        needs=STAGES[stage].needs,
        needs_output_files=config.denoising,
        on_bad_item=config.on_bad_item,
    )
    return ChatDataset(config.data, reader, folder=config.features, workers=workers_for(config), retry=retry)


def workers_for(config: TrainingConfig) -> int:
    """How many processes tokenize a run's data: none where there is little of it."""
    size = sum(Path(file).stat().st_size for file in config.data if Path(file).is_file())
    return config.tokenizing_workers if size > WORTH_WORKERS else 0


def _trainer(
    stage: str,
    config: TrainingConfig,
    arguments: TrainingArguments,
    model: NextGPTForConditionalGeneration,
    processor: NextGPTProcessor,
    dataset: ChatDataset,
    features: TrainingFeatures,
    identity: dict[str, Any],
) -> StageTrainer:
    sampler = make_sampler(config, arguments, dataset.sources, dataset.lengths)
    collator = ChatCollator(processor.tokenizer.pad_token_id, features)
    alone = trained_groups(stage, config) == PROJECTIONS_ALONE
    trainer = (ProjectionTrainer if alone else StageTrainer)(
        processor,
        sampler,
        identity,
        config.learning_rates,
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
    )
    if config.sample_steps:
        makes_media = "output_projections" in STAGES[stage].trains
        samples = SampleAnswers(
            dataset, collator, processor, steps=config.sample_steps, count=config.sample_count, make_media=makes_media
        )
        samples.use_tensorboard(trainer.callback_handler.callbacks)
        trainer.add_callback(samples)
    return trainer


def make_sampler(
    config: TrainingConfig, arguments: TrainingArguments, sources: np.ndarray, lengths: np.ndarray
) -> EpochSampler:
    """The order of a run's examples.

    Args:
        sources, lengths: `[n]`, the number of each one's file, and its tokens.

    Raises:
        UserInputError: a file that is to be taken from has none.
    """
    if config.data_weights:
        counts = np.bincount(sources, minlength=len(config.data))
        for file, weight, count in zip(config.data, config.data_weights, counts, strict=True):
            if weight and not count:
                raise UserInputError(
                    f"{file} has weight {weight:g} and no usable conversation: fix it, or set its entry of data_weights to 0"
                )
    return EpochSampler(
        sources,
        seed=arguments.seed,
        weights=config.data_weights,
        lengths=lengths if arguments.train_sampling_strategy == "group_by_length" else None,
        step_size=arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        shuffle=arguments.train_sampling_strategy != "sequential",
        multiple=arguments.per_device_train_batch_size * arguments.world_size if arguments.world_size > 1 else 1,
    )


def _train(trainer: StageTrainer, checkpoint: str | None) -> None:
    """Trains from a checkpoint on, or takes it as it is where it is the last one: the `Trainer` would add a step."""
    if checkpoint:
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if 0 < trainer.args.max_steps <= state.global_step:
            logger.info("%s has all %d steps", checkpoint, trainer.args.max_steps)
            trainer._load_from_checkpoint(checkpoint)
            trainer.state = state
            return
    try:
        with training_attention(trainer.args.device):
            trainer.train(resume_from_checkpoint=checkpoint)
    except (MemoryError, RuntimeError) as error:  # of a batch `StageTrainer` itself speaks
        if not is_out_of_memory(error):
            raise
        raise TrainingStopped(
            f"out of memory after step {trainer.state.global_step}, outside of a batch, where the optimizer keeps its state "
            "or a checkpoint is made: name a leaner optimizer (optim=adafactor)"
        ) from error


def _report_skipped(dataset: ChatDataset, folder: Path) -> None:
    if dataset.skipped:
        first = dataset.skipped[0]
        logger.warning(
            "%d bad items skipped, listed in %s; the first is %s: %s",
            len(dataset.skipped),
            folder / SKIPPED_FILE,
            first.where,
            first.reason,
        )


def frozen_features(
    config: TrainingConfig,
    model: NextGPTForConditionalGeneration,
    processor: NextGPTProcessor,
    dataset: ChatDataset,
    device: torch.device,
    plan: Stage | None = None,
) -> TrainingFeatures:
    """The features of a model's frozen parts, after which its encoder goes: it need not travel to the device."""
    plan = plan or STAGES["instruct"]
    features = gather_features(
        dataset,
        model.config,
        model.encoder,
        processor,
        config.features,
        device=device,
        batch_size=config.feature_batch_size,
        decoders=model.decoders if config.denoising else None,
        captions=plan.captions,
        on_bad_item=config.on_bad_item,
    )
    if not plan.keeps_encoder:
        model.encoder = nn.Module()
    return features


def _checkpoint(config: TrainingConfig, identity: dict[str, Any], *, is_main: bool) -> str | None:
    """The checkpoint to go on from.

    Raises:
        UserInputError: it is none, or that of another run.
    """
    if not config.resume:
        if is_main:
            set_aside(config.output_dir)
        return None
    if config.resume in ("auto", True):
        whole = checkpoints(config.output_dir)
        if not whole:
            return None
        checkpoint = whole[-1]
        logger.info("Resuming from %s; `resume=false` starts anew", checkpoint)
    else:
        checkpoint = Path(config.resume)
        if not (checkpoint / TRAINER_STATE_NAME).is_file():
            raise UserInputError(f"resume names {checkpoint}, which holds no {TRAINER_STATE_NAME}: name a checkpoint folder")
    check_identity(checkpoint, identity)
    if is_main:
        set_aside(config.output_dir, newer_than=checkpoint)
    return str(checkpoint)


def train(
    stage: str,
    config: str,
    overrides: Sequence[str] = (),
    settings: type[TrainingConfig] = TrainingConfig,
    plan: Stage | None = None,
) -> Path:
    """What the commands do: reads a configuration file, trains, and says where the result is.

    Args:
        config: a YAML file, or `nano` or `7b` for the one that comes with the package.
        overrides: `key=value`.
        settings, plan: of what is none of the three stages.

    Raises:
        NextGPTError: as for `run_stage`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        folder = run_stage(stage, read_config(stage, config, overrides, settings), plan)
    except OSError as error:  # a decoder's file, a full disk
        raise error if isinstance(error, NextGPTError) else UserInputError(str(error)) from error
    logger.info("saved in %s", folder)
    return folder


def read_config(
    stage: str, config: str, overrides: Sequence[str] = (), settings: type[TrainingConfig] = TrainingConfig
) -> TrainingConfig:
    """The settings in a file, or in the packaged one that `nano` or `7b` names, with `key=value` overrides."""
    packaged = Path(__file__).parent / "configs" / config / f"{stage}.yaml"
    return settings.from_file(packaged if packaged.is_file() else config, overrides)


def main(stage: str, arguments: Sequence[str] | None = None) -> None:
    """The command of one stage: `--config FILE [key=value ...]`. A user's mistake ends it with one line and code 2."""
    description = f"Trains {', '.join(STAGES[stage].trains)}."
    parser = argparse.ArgumentParser(prog=f"python -m nextgpt.train.{stage}", description=description)
    parser.add_argument("--config", required=True, help="YAML file, or nano or 7b for the one that comes with the package")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    options = parser.parse_args(arguments)
    try:
        train(stage, options.config, options.overrides)
    except NextGPTError as error:
        parser.exit(2, f"error: {error}\n")
