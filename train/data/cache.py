"""Computes the frozen features of a stage's data ahead of its training: `nextgpt data cache`.

By processes of this machine, or by Ray Data on all machines of a cluster: there the head cuts the batches and writes the
files, so that they are those of a single process, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import DECODERS
from nextgpt.encoders.loading import ENCODERS
from nextgpt.errors import UserInputError
from nextgpt.hub.loading import load_frozen_decoder, load_frozen_encoder
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatDataset, spawned
from nextgpt.train.data.features import (
    Batch,
    Computed,
    FeatureSource,
    Run,
    compute_batch,
    conditioning,
    embedding,
    gather_features,
    on_cpu,
    run_here,
)
from nextgpt.train.stages import open_dataset, read_config
from nextgpt.train.start import load_processor, read_model_config

BLOCKS = 1000  # of Ray's data set, at most; each is some batches, which are cut before
Opened = tuple[ChatDataset, NextGPTConfig, NextGPTProcessor]


def cache_features(
    stage: str, config: str, overrides: Sequence[str] = (), *, processes: int = 1, engine: str = "local"
) -> Path:
    """Stores what the frozen parts say of the data of a stage. What is stored already is left as it is.

    Args:
        stage, config, overrides: as for `nextgpt.train.stages.train`.
        processes: that divide the items among themselves, each with the frozen parts in its own memory.
        engine: `local`, or `ray`: the processes are actors of a Ray cluster, the one that `RAY_ADDRESS` names or one on
            this machine. The data, the model and the cache's folder must be found at the same paths on all of its machines.

    Returns:
        The folder of the cache, `features` in the configuration.

    Raises:
        NextGPTError: a setting, a data file, a media file or a model is not what it should be.
    """
    settings = read_config(stage, config, overrides)
    opened = _open(stage, settings, retry=True)  # tokenized once, before the processes read it
    if engine == "ray":
        _cache_features(settings, opened, (0, 1), _run_on_ray(settings, processes))
    elif processes == 1:
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
    location, model_config = read_model_config(config)
    processor = load_processor(location, model_config)
    return open_dataset(stage, config, model_config, processor, retry=retry), model_config, processor


def _device(config: TrainingConfig, part: int) -> torch.device:
    """Of the part-th process: where there are several accelerators, each process has its own, in turn."""
    device = config.training_arguments().device
    count = torch.accelerator.device_count() if device.type != "cpu" else 0
    return torch.device(device.type, part % count) if count > 1 else device


def _cache_share(stage: str, config: TrainingConfig, share: tuple[int, int]) -> None:
    _cache_features(config, _open(stage, config, retry=False), share)


def _cache_features(config: TrainingConfig, opened: Opened, share: tuple[int, int], run: Run = run_here) -> None:
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
        run=run,
    )


# ---------------------------------------------------------------------- on a Ray cluster


def _run_on_ray(config: TrainingConfig, processes: int) -> Run:
    if config.denoising:
        raise UserInputError("denoising=true: its latents are cached by engine local alone; leave --engine ray out")
    try:
        import ray.data
    except ImportError:
        raise UserInputError("--engine ray needs Ray Data: pip install 'nextgpt[ray]'") from None
    from ray.exceptions import RayTaskError

    ray.init(ignore_reinit_error=True, logging_level="WARNING")
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    on_accelerator = _device(config, 0).type != "cpu"

    def run(source: FeatureSource, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Computed]]:
        if not (cut := list(batches)):
            return
        computed = ray.data.from_items([{"batch": batch} for batch in cut], override_num_blocks=min(len(cut), BLOCKS)).map(
            _Worker,
            fn_constructor_args=(config, source.role, source.modality, source.description),
            concurrency=min(processes, len(cut)),
            num_gpus=1 if on_accelerator else 0,
        )
        try:
            for batch, row in zip(cut, computed.iter_rows(), strict=True):
                yield batch, row["computed"]
        except RayTaskError as error:
            if isinstance(error.cause, UserInputError):
                raise error.cause from None
            raise

    return run


class _Worker:
    """An actor that holds one frozen part and computes batches with it."""

    def __init__(self, config: TrainingConfig, role: str, modality: str, description: str):
        self.description = description
        location, model_config = read_model_config(config)
        device = _device(config, 0)
        if role == "inputs":
            encoder = load_frozen_encoder(model_config, getattr(torch, config.dtype))
            self.compute = embedding(modality, encoder, load_processor(location, model_config), device)
        else:
            self.compute = conditioning(load_frozen_decoder(model_config, modality, device))

    @torch.no_grad()
    def __call__(self, row: dict[str, Batch]) -> dict[str, Any]:
        computed = compute_batch(self.compute, row["batch"], self.description)
        return {"computed": {item: _kept(value) for item, value in computed.items()}}


def _kept(value: Any) -> Any:
    return value if isinstance(value, Exception) else on_cpu(value)
