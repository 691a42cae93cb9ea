"""Computes the frozen features of a stage's data ahead of its training: `nextgpt data cache`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import DECODERS
from nextgpt.encoders.loading import ENCODERS
from nextgpt.hub.loading import load_frozen_encoder
from nextgpt.hub.parts import fetch_model
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatDataset, spawned
from nextgpt.train.data.features import gather_features
from nextgpt.train.stages import load_processor, open_dataset, read_config

Opened = tuple[ChatDataset, NextGPTConfig, NextGPTProcessor]


def cache_features(stage: str, config: str, overrides: Sequence[str] = (), *, processes: int = 1) -> Path:
    """Stores what the frozen parts say of the data of a stage. What is stored already is left as it is.

    Args:
        stage, config, overrides: as for `nextgpt.train.stages.train`.
        processes: that divide the items among themselves, each with the frozen parts in its own memory.

    Returns:
        The folder of the cache, `features` in the configuration.

    Raises:
        NextGPTError: a setting, a data file, a media file or a model is not what it should be.
    """
    settings = read_config(stage, config, overrides)
    opened = _open(stage, settings, retry=True)  # tokenized once, before the processes read it
    if processes == 1:
        _cache_features(settings, opened, (0, 1))
    else:
        shares = [(stage, settings, (part, processes)) for part in range(processes)]
        model_config = opened[1]
        encoders = [ENCODERS[model_config.encoder_config.model_type]]
        decoders = [DECODERS[model_config.part(modality).kind] for modality in model_config.decoders]
        with spawned(processes, encoders, decoders) as pool:
            pool.starmap(_cache_share, shares, chunksize=1)
    return Path(settings.features)


def _open(stage: str, config: TrainingConfig, *, retry: bool) -> Opened:
    location = fetch_model(config.model)
    model_config = NextGPTConfig.from_pretrained(location)
    processor = load_processor(location, model_config)
    return open_dataset(stage, config, model_config, processor, retry=retry), model_config, processor


def _device(config: TrainingConfig, part: int) -> torch.device:
    """Of the part-th process: where there are several accelerators, each process has its own, in turn."""
    device = config.training_arguments().device
    count = torch.accelerator.device_count() if device.type != "cpu" else 0
    return torch.device(device.type, part % count) if count > 1 else device


def _cache_share(stage: str, config: TrainingConfig, share: tuple[int, int]) -> None:
    _cache_features(config, _open(stage, config, retry=False), share)


def _cache_features(config: TrainingConfig, opened: Opened, share: tuple[int, int]) -> None:
    dataset, model_config, processor = opened
    gather_features(
        dataset,
        model_config,
        load_frozen_encoder(model_config, getattr(torch, config.dtype)),
        processor,
        config.features,
        device=_device(config, share[0]),
        batch_size=config.feature_batch_size,
        decoders={} if config.denoising else None,
        share=share,
        on_bad_item=config.on_bad_item,
        accept_stale=True,
    )
