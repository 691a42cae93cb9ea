"""What frozen diffusion decoders share: loading, guidance, seeds, steps, cancellation and the denoising loss.

What one pipeline needs beyond this stands in its own file. The conditioning is made by the caller.
"""

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from nextgpt.decoders.contract import (
    Conditioning,
    ConditioningSpec,
    OnStep,
    Preview,
    RowsUnderWay,
    Size,
    Stop,
    TensorSpec,
    add_constants,
    check_conditioning,
    check_option,
    stop_if,
)
from nextgpt.decoders.objectives import training_objective
from nextgpt.decoders.sources import (
    LOADING,
    PartConfig,
    capture_log_messages,
    check_components,
    local_folder,
    part_class,
    part_patterns,
    read_config,
    read_json,
    read_text_length,
    required_size,
    shared_components,
    unreachable,
)

logger = logging.getLogger(__name__)

DEFAULTS_FILE = "generation_defaults.json"


class Decoder:
    """A frozen diffusers pipeline that is steered by embeddings instead of by a prompt.

    A subclass names its pipeline and says how that pipeline is called. What is written here fits pipelines with a CLIP
    text encoder and a UNet with cross-attention; a subclass overrides what differs.

    The pipeline loads on first use, once, and stays. Every method may be called from several threads.

    Attributes:
        conditioning_spec: tensor's name → its shape, and whether a model has to make it; read from configuration files.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]  # what it makes: "image", "audio", "video" or a plug-in's
    pipeline_class: ClassVar[str]  # its public name in diffusers
    denoiser: ClassVar[str] = "unet"  # what the pipeline calls the frozen model that denoises
    # What decides on `encode`, and on `encode_media`: patterns of files in the decoder's folder.
    text_encoder_files: ClassVar[tuple[str, ...]] = ("text_encoder/*", "tokenizer/*")
    autoencoder_files: ClassVar[tuple[str, ...]] = ("*.json", "vae/*", "unet/config.json")
    # What the pipeline's callback may replace when rows are no longer wanted; nothing: all are computed to the end.
    batch_tensors: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[dict[str, Any]] = {}  # given to the pipeline's from_pretrained
    defaults: ClassVar[dict[str, Any]]  # of every option that `generate` takes; None: what the weights were made for

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """Reads a few JSON files; weights are read on first use.

        Args:
            source: a local folder or a Hub repository, as diffusers' `save_pretrained` lays it out. A local folder may
                hold a `generation_defaults.json` with values for any of the options in `defaults` and, as `fixed`, the
                names of those that can have no other value (a size, where the weights know one only); and a
                `shared_components.json` with the folders, relative to it, of parts that it shares with another
                pipeline, as `{"vae": "../image_decoder/vae"}`.

        Raises:
            OSError: a file is missing or unreadable.
            ValueError: the source holds another kind of pipeline, or its files contradict each other.
        """
        self.source, self.revision = str(source), revision
        self.device, self.dtype = torch.device(device), dtype
        self._index = read_json(self.source, "model_index.json", revision)
        if self._index.get("_class_name") != self.pipeline_class:
            raise ValueError(
                f"{self.source} holds a {self._index.get('_class_name')}, but the decoder '{self.kind}' is made for a "
                f"{self.pipeline_class}. Name another kind or another source."
            )
        self.conditioning_spec = self.read_conditioning_spec(self.source, revision)
        self.fixed_options: frozenset[str] = frozenset()  # those whose default is the only value that `generate` takes
        self.generation_defaults = {**self.defaults, **self._read_defaults()}
        self._pipeline = None
        self._configs: dict[str, PartConfig] = {}  # of its parts, each read once
        self._lock = threading.Lock()
        self._told_of_cuts = False

    # What a subclass may override --------------------------------------------------------------------------------

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """What the decoder takes, from configuration files alone; here: `prompt_embeds`, CLIP's last hidden state."""
        config = read_config(source, "text_encoder", revision)
        length = read_text_length(source, config, revision)
        return {"prompt_embeds": TensorSpec((length, required_size(config, "hidden_size", source)))}

    def _read_sizes(self) -> dict[str, Size]:
        """Size option → the values that it may have, from configuration files alone."""
        return {}

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        """The pipeline's own embedding of `captions`: every projected tensor of the conditioning."""
        return {"prompt_embeds": pipeline.encode_prompt(captions, self.device, 1, False)[0]}

    def _cuts(self, pipeline, captions: list[str]) -> bool:
        """Whether `_encode` leaves out the end of a caption; for where the pipeline does not say so itself."""
        return False

    def _encode_empty(self, pipeline) -> Conditioning | None:
        """The conditioning of one empty prompt, for guidance; None where the pipeline makes its own."""
        return self._encode(pipeline, [""])

    def _prepare(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning in the form that the pipeline takes."""
        return {name: tensor.to(self.device, self.dtype) for name, tensor in conditioning.items()}

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """What the denoiser predicts, in training; `conditioning` as `_prepare` gives it."""
        return pipeline.unet(noisy, timesteps, encoder_hidden_states=conditioning["prompt_embeds"]).sample

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview | None:
        return None

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list:
        """Call `pipeline`, report each finished step (from 0) with its latents, and return one media item per row."""
        raise NotImplementedError

    def _encode_media(self, pipeline, media: Sequence, options: dict) -> torch.Tensor:
        """Latents of `media`, scaled as the denoiser sees them."""
        raise NotImplementedError

    # The public face ---------------------------------------------------------------------------------------------

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the sounds that it makes; a decoder of sounds says it."""
        raise AttributeError(f"the decoder '{self.kind}' makes no sounds")

    @cached_property
    def sizes(self) -> dict[str, Size]:
        """Size option (`height`, `num_frames`, `duration` …) → the values that the decoder can make.

        Read from configuration files alone. An option that is not named here takes every number above 0.
        """
        fixed = {name: Size.only(self.generation_defaults[name]) for name in self.fixed_options}
        sizes = self._read_sizes() | fixed
        self._check_values(self.generation_defaults, sizes, where=f"{self.source}: as a default, ")
        return sizes

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Conditioning:
        """What the frozen text encoders say of each caption, the training target of the conditioning.

        Returns:
            Name → [N, *shape], for every projected tensor of `conditioning_spec`.

        Raises:
            ValueError: the decoder's class declares other tensors than it encodes.
        """
        pipeline, captions = self.pipeline, list(captions)
        # Its warning of what is truncated would repeat every caption.
        with self._lock, capture_log_messages(type(pipeline).__module__, "truncated") as cut:
            conditioning = self._encode(pipeline, captions)  # locked: fast tokenizers refuse two callers at once
            was_cut = bool(cut) or self._cuts(pipeline, captions)
        projected = {name: tensor for name, tensor in self.conditioning_spec.items() if tensor.is_projected}
        advice = "So its class declares it, but it encoded something else: make read_conditioning_spec and _encode agree."
        check_conditioning(projected, conditioning, f"The decoder '{self.kind}' at {self.source}", advice)
        if was_cut and not self._told_of_cuts:
            self._told_of_cuts = True
            limit = pipeline.tokenizer.model_max_length
            logger.warning("Of captions longer than %d tokens, the decoder '%s' reads the beginning", limit, self.kind)
        return conditioning

    def generate(
        self,
        conditioning: Conditioning,
        *,
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: OnStep | None = None,
        cancel: Stop | Sequence[Stop] | None = None,
        **size: float | None,
    ) -> list:
        """Make one media item per row of `conditioning`. An item depends on its own row and seed, not on the batch.

        Args:
            conditioning: name → [N, *shape], as `conditioning_spec` has it; constants may be absent.
            seeds: N integers. The noise is drawn on the CPU, so a seed means the same on every device.
            guidance_scale: classifier-free guidance against the empty prompt; 1 turns it off.
            on_step: called after every step with (steps done, steps in all, preview); `preview()` shows how the items
                look so far, and is None where that is not cheap. The steps in all are the scheduler's: some
                schedulers (PNDM) take one more than `num_inference_steps`.
            cancel: when set, generation ends within one step. Or one for each row: rows whose own is set are dropped within
                one step, where the pipeline can (`shrinks`), and generation ends with the last; None stands in their place.
            **size: `height`, `width` (image, video; pixels), `num_frames`, `fps` (video), `duration` (audio; seconds).
                None, here and above, means the value in `generation_defaults`.

        Returns:
            PIL images, `Audio` or `Video` items, or what a plug-in makes, by modality.

        Raises:
            GenerationCancelled: `cancel` was set.
            ValueError: an argument does not fit.
        """
        options = self._options({"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **size})
        self._check_conditioning(conditioning)
        count = len(next(iter(conditioning.values())))
        if len(seeds) != count:
            raise ValueError(f"Got {len(seeds)} seeds for {count} rows of conditioning: give one for each.")
        stop_if(cancel)
        pipeline = self._pipeline_for_one_call()
        stop_if(cancel)  # it may have been set while the weights were loading
        arguments = self._prepare(add_constants(self.conditioning_spec, conditioning))
        if self._empty is not None:
            empty = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self._empty.items()}
            arguments |= {f"negative_{name}": tensor for name, tensor in self._prepare(empty).items()}
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        batch = RowsUnderWay(pipeline, arguments["generator"], self.batch_tensors, self._preview, on_step, cancel)
        with torch.no_grad():
            return batch.in_place(self._run(pipeline, batch, options, arguments))

    @property
    def shrinks(self) -> bool:
        """Whether rows that are no longer wanted are dropped from a batch under way."""
        return bool(self.batch_tensors)

    @torch.no_grad()
    def encode_media(self, media: Sequence, **size: float | None) -> torch.Tensor:
        """The autoencoder's latents of `media` (what `generate` returns, N of them), for `denoising_loss`.

        The mode of the autoencoder's distribution is taken, so that latents can be cached.

        Args:
            **size: as for `generate`; media of other sizes are scaled and cropped, or cut and padded, to it.

        Returns:
            [N, channels, ...], scaled as the denoiser sees them.
        """
        return self._encode_media(self.pipeline, media, self._options(size))

    def check_trainable(self) -> None:
        """Raises ValueError where there is no denoising loss for the decoder; reads its configuration alone."""
        self._objective_kind()

    def _objective_kind(self) -> Callable:
        config = read_config(self.source, "scheduler", self.revision, filename="scheduler_config.json")
        return training_objective(config, where=f"The decoder '{self.kind}' at {self.source}: ")

    def denoising_loss(
        self, conditioning: Conditioning, latents: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The diffusion model's own training loss, as its scheduler's configuration has it (see `objectives`).

        Gradients flow through the frozen denoiser into `conditioning`, and nowhere else.

        Args:
            conditioning: as for `generate`.
            latents: [N, channels, ...] of `encode_media`.

        Returns:
            A scalar in float32: the mean squared error of what the denoiser predicts.

        Raises:
            ValueError: the scheduler has no training objective here.
        """
        return self.denoising_errors(conditioning, latents, generator).mean()

    def denoising_errors(
        self, conditioning: Conditioning, latents: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The same for each item by itself, [N]. A generator in the same state draws the same noise and timesteps."""
        self._check_conditioning(conditioning)
        pipeline = self.pipeline
        noised = self._objective(latents.to(self.device, self.dtype), generator)
        conditioning = self._prepare(add_constants(self.conditioning_spec, conditioning))
        prediction = self._denoise(pipeline, noised.latents, noised.timesteps, conditioning)
        return (prediction.float() - noised.target.float()).square().flatten(1).mean(1)

    # Loading -----------------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> Any:
        """The frozen diffusers pipeline; the first use loads it. Its scheduler is a template: see `generate`."""
        if self._pipeline is None:
            with self._lock:
                if self._pipeline is None:
                    self._pipeline = self._load()
        return self._pipeline

    @property
    def parameter_count(self) -> int | None:
        """Of all networks of the pipeline; None before it is loaded."""
        if self._pipeline is None:
            return None
        networks = [each for each in self._pipeline.components.values() if isinstance(each, torch.nn.Module)]
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    @cached_property
    def _objective(self) -> Callable:
        return self._objective_kind()(self.pipeline.scheduler)

    def _load(self):
        logger.info("Loading the decoder '%s' from %s", self.kind, self.source)
        with (
            LOADING,
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # weights loaded in inference mode could not pass gradients
            pipeline = self._read_weights().to(self.device)
            pipeline.set_progress_bar_config(disable=True)  # progress is `on_step`'s
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    component.requires_grad_(False).eval()
            empty = self._encode_empty(pipeline)
            self._empty = empty and add_constants(self.conditioning_spec, empty)
        return pipeline

    def _read_weights(self):
        import diffusers
        from safetensors import SafetensorError

        pipeline_class = getattr(diffusers, self.pipeline_class)
        folder = local_folder(self.source)
        if folder is None:
            try:
                options = {"revision": self.revision, "use_safetensors": True, **self.load_options}
                folder = local_folder(pipeline_class.download(self.source, **options))
            except OSError as error:
                raise OSError(unreachable(self.source, self.revision, "safetensors weights", error)) from error
        shared = shared_components(folder)
        check_components(folder, self._index, unused=set(self.load_options), elsewhere=shared)
        # Parts that were saved as absent: not every pipeline loads without being told so.
        absent = {name: None for name, entry in self._index.items() if isinstance(entry, list) and entry[-1] is None}
        options = {"use_safetensors": True, "local_files_only": True}
        try:
            # Two pipelines are frozen upstream and say so at each start; the pinned version is our answer to that.
            # And an autoencoder may be of another class than its pipeline names, and name what that reads and its own
            # class does not take.
            with (
                capture_log_messages("diffusers.pipelines.pipeline_utils", "has been deprecated and will not receive"),
                capture_log_messages("diffusers.pipelines.pipeline_utils", "Expected types for vae"),
                capture_log_messages("diffusers.configuration_utils", "were passed to AutoencoderDC"),
            ):
                parts = {name: self._read_part(name, path) for name, path in shared.items()}
                given = absent | self.load_options | parts
                return pipeline_class.from_pretrained(folder, dtype=self.dtype, **options, **given)
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            what = f"Could not load the decoder '{self.kind}' from {folder}: {' '.join(str(error).split())}"
            remedy = "Install the package" if isinstance(error, ImportError) else "Restore its files"
            raise OSError(f"{what}. {remedy} and try again.") from error

    def _read_part(self, name: str, folder: Path) -> Any:
        """A part that lies in another pipeline's folder: a model, or what has no weights, such as a tokenizer."""
        kind = part_class(*self._index[name])
        options = {"dtype": self.dtype, "use_safetensors": True} if issubclass(kind, torch.nn.Module) else {}
        return kind.from_pretrained(folder, local_files_only=True, **options)

    def _pipeline_for_one_call(self):
        """The same frozen modules with a scheduler of its own: pipelines and schedulers keep state during a call."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        return pipeline

    def _config(self, part: str) -> PartConfig:
        if part not in self._configs:
            where = f"{self.source}: {part}/config.json"
            self._configs[part] = PartConfig(read_config(self.source, part, self.revision), where)
        return self._configs[part]

    def files_of(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """`text_encoder_files` or `autoencoder_files`, parts that lie in another pipeline's folder included."""
        return part_patterns(self.source, patterns)

    # Options and checks ------------------------------------------------------------------------------------------

    def _read_defaults(self) -> dict[str, Any]:
        folder = local_folder(self.source)
        if folder is None or not (folder / DEFAULTS_FILE).exists():
            return {}
        defaults = read_json(self.source, DEFAULTS_FILE)
        fixed = frozenset(defaults.pop("fixed", ()))
        self._check_values(defaults, {}, where=f"{folder / DEFAULTS_FILE}: ")  # their sizes are checked when they are used
        if not fixed <= defaults.keys():
            raise ValueError(
                f"{folder / DEFAULTS_FILE}: 'fixed' names {sorted(fixed - defaults.keys())}, given no value there."
            )
        self.fixed_options = fixed
        return defaults

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given`, with the default for all that is None or absent."""
        self.check_options(given)
        return {**self.generation_defaults, **{name: value for name, value in given.items() if value is not None}}

    def check_options(self, options: dict[str, Any]) -> None:
        """Checks options of `generate` without loading anything; None stands for the default.

        Raises:
            ValueError: an option is unknown, or has a value that the decoder cannot make.
        """
        self._check_values(options, self.sizes)

    def _check_values(self, options: dict[str, Any], sizes: dict[str, Size], where: str = "") -> None:
        for name, value in options.items():
            if name not in self.defaults:
                known = ", ".join(self.defaults)
                raise ValueError(f"{where}the decoder '{self.kind}' has no option '{name}'. It has: {known}.")
            if problem := check_option(name, value, sizes.get(name)):
                raise ValueError(where + problem)

    def _check_conditioning(self, conditioning: Conditioning) -> None:
        advice = "The output projection must be made for this decoder."
        check_conditioning(self.conditioning_spec, conditioning, f"The decoder '{self.kind}' at {self.source}", advice)
