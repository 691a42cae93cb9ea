"""All that frozen diffusion decoders share: loading, guidance, seeds, steps, cancellation and the denoising loss.

Knows diffusers pipelines by what they have in common. Does not know any one pipeline (see its own file), nor where
the conditioning comes from.
"""

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image

from nextgpt.decoders.sources import check_components, local_folder, read_json, shared_components, unreachable

logger = logging.getLogger(__name__)

DEFAULTS_FILE = "generation_defaults.json"
INTEGER_OPTIONS = {"num_inference_steps", "height", "width", "num_frames"}
PREVIEW_LATENTS = 32  # a preview decodes at most so many latents a side: 256 pixels

Preview = Callable[[], list[Image.Image]]
OnStep = Callable[[int, int, Preview | None], None]


class GenerationCancelled(Exception):
    """The caller's `cancel` event was set while media were being made."""


class Decoder:
    """A frozen diffusers pipeline that is steered by embeddings instead of by a prompt.

    A subclass names its pipeline and says how that pipeline is called. What is written here fits pipelines with a CLIP
    text encoder and a UNet with cross-attention; a subclass overrides what differs.

    The pipeline loads on first use, once, and stays. Every method may be called from several threads.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]  # "image", "audio" or "video"
    pipeline_class: ClassVar[str]  # its public name in diffusers
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
        self.conditioning_shape = self.read_conditioning_shape(self.source, revision)
        self.fixed_options: frozenset[str] = frozenset()  # those whose default is the only value that `generate` takes
        self.generation_defaults = {**self.defaults, **self._read_defaults()}
        self._index = read_json(self.source, "model_index.json", revision)
        if self._index.get("_class_name") != self.pipeline_class:
            raise ValueError(
                f"{self.source} holds a {self._index.get('_class_name')}, but the decoder '{self.kind}' is made for a "
                f"{self.pipeline_class}. Name another kind or another source."
            )
        self._pipeline = None
        self._lock = threading.Lock()
        self._told_of_cuts = False

    # What a subclass may override --------------------------------------------------------------------------------

    @classmethod
    def read_conditioning_shape(cls, source: str, revision: str | None = None) -> tuple[int, int]:
        """(queries, width) of the conditioning, from configuration files alone; here: CLIP's last hidden state."""
        config = read_json(source, "text_encoder/config.json", revision)
        tokenizer_config = read_json(source, "tokenizer/tokenizer_config.json", revision)
        length = required_size(config, "max_position_embeddings", source)
        padded_length = required_size(tokenizer_config, "model_max_length", source)
        if length != padded_length:
            raise ValueError(
                f"{source}: its tokenizer pads to model_max_length={padded_length} tokens, but its text encoder has "
                f"max_position_embeddings={length}. Correct tokenizer/tokenizer_config.json."
            )
        return length, required_size(config, "hidden_size", source)

    def _encode(self, pipeline, captions: list[str]) -> torch.Tensor:
        """The pipeline's own embedding of `captions`: [N, Q, W]."""
        return pipeline.encode_prompt(captions, self.device, 1, False)[0]

    def _prompt_embeds(self, conditioning: torch.Tensor) -> torch.Tensor:
        """Conditioning [N, Q, W] in the form that the pipeline takes as `prompt_embeds`."""
        return conditioning.to(self.device, self.dtype)

    def _denoise(self, unet, noisy: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return unet(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview | None:
        return None

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list:
        """Call `pipeline`, report each finished step (from 0) with its latents, and return one media item per row."""
        raise NotImplementedError

    def _encode_media(self, pipeline, media: Sequence, options: dict) -> torch.Tensor:
        """Latents of `media`, scaled as the UNet sees them."""
        raise NotImplementedError

    # The public face ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, captions: list[str]) -> torch.Tensor:
        """The frozen text encoder's embedding of each caption, the training target of the conditioning: [N, Q, W]."""
        pipeline = self.pipeline
        with self._lock, _holding_back(type(pipeline).__module__, "truncated") as cut:  # it would repeat every caption
            embeddings = self._encode(pipeline, list(captions))  # locked: fast tokenizers refuse two callers at once
        if cut and not self._told_of_cuts:
            self._told_of_cuts = True
            limit = pipeline.tokenizer.model_max_length
            logger.warning("Of captions longer than %d tokens, the decoder '%s' reads the beginning", limit, self.kind)
        return embeddings

    def generate(
        self,
        conditioning: torch.Tensor,
        *,
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: OnStep | None = None,
        cancel: threading.Event | None = None,
        **size: float | None,
    ) -> list:
        """Make one media item per row of `conditioning`. An item depends on its own row and seed, not on the batch.

        Args:
            conditioning: [N, Q, W] with (Q, W) = `conditioning_shape`.
            seeds: N integers. The noise is drawn on the CPU, so a seed means the same on every device.
            guidance_scale: classifier-free guidance against the empty prompt; 1 turns it off.
            on_step: called after every step with (steps done, steps in all, preview); `preview()` shows how the items
                look so far, and is None where that is not cheap. The steps in all are the scheduler's: some
                schedulers (PNDM) take one more than `num_inference_steps`.
            cancel: when set, generation ends within one step.
            **size: `height`, `width` (image, video; pixels), `num_frames`, `fps` (video), `duration` (audio; seconds).
                None, here and above, means the value in `generation_defaults`.

        Returns:
            PIL images, `Audio` or `Video` items, by modality.

        Raises:
            GenerationCancelled: `cancel` was set.
            ValueError: an argument does not fit.
        """
        options = self._options({"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **size})
        self._check_conditioning(conditioning)
        if len(seeds) != len(conditioning):
            raise ValueError(f"Got {len(seeds)} seeds for {len(conditioning)} rows of conditioning: give one for each.")
        _stop_if(cancel)
        pipeline = self._pipeline_for_one_call()

        def after_step(index: int, latents: torch.Tensor) -> None:
            _stop_if(cancel)
            if on_step is not None:
                total = math.ceil(len(pipeline.scheduler.timesteps) / pipeline.scheduler.order)
                on_step(index + 1, total, self._preview(pipeline, latents))
                _stop_if(cancel)

        _stop_if(cancel)  # it may have been set while the weights were loading
        arguments = {
            "prompt_embeds": self._prompt_embeds(conditioning),
            "negative_prompt_embeds": self._prompt_embeds(self._empty_prompt.expand(len(conditioning), -1, -1)),
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        }
        with torch.no_grad():
            return self._run(pipeline, after_step, options, arguments)

    @torch.no_grad()
    def encode_media(self, media: Sequence, **size: float | None) -> torch.Tensor:
        """The autoencoder's latents of `media` (what `generate` returns, N of them), for `denoising_loss`.

        The mode of the autoencoder's distribution is taken, so that latents can be cached.

        Args:
            **size: as for `generate`; media of other sizes are scaled and cropped, or cut and padded, to it.

        Returns:
            [N, channels, ...], multiplied by the autoencoder's scaling factor.
        """
        return self._encode_media(self.pipeline, media, self._options(size))

    def denoising_loss(
        self, conditioning: torch.Tensor, latents: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The diffusion model's own training loss at uniformly drawn timesteps (Ho et al. 2020, simplified objective).

        Gradients flow through the frozen UNet into `conditioning`, and nowhere else.

        Args:
            conditioning: [N, Q, W].
            latents: [N, channels, ...] of `encode_media`.

        Returns:
            A scalar in float32: the mean squared error of what the UNet predicts, be it the noise, the velocity
            (Salimans and Ho 2022) or the sample, as the scheduler's configuration says.
        """
        from diffusers.utils.torch_utils import randn_tensor

        self._check_conditioning(conditioning)
        pipeline, schedule = self.pipeline, self._training_schedule
        latents = latents.to(self.device, self.dtype)
        noise = randn_tensor(latents.shape, generator=generator, device=self.device, dtype=self.dtype)
        timesteps = torch.randint(
            schedule.config.num_train_timesteps,
            (len(latents),),
            generator=generator,
            device=generator.device if generator else None,
        ).to(self.device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        prediction = self._denoise(pipeline.unet, noisy, timesteps, self._prompt_embeds(conditioning))
        match schedule.config.prediction_type:
            case "epsilon":
                target = noise
            case "v_prediction":
                target = schedule.get_velocity(latents, noise, timesteps)
            case _:  # "sample", the only other that diffusers knows
                target = latents
        return F.mse_loss(prediction.float(), target.float())

    # Loading -----------------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> Any:
        """The frozen diffusers pipeline; the first use loads it. Its scheduler is a template: see `generate`."""
        if self._pipeline is None:
            with self._lock:
                if self._pipeline is None:
                    self._pipeline = self._load()
        return self._pipeline

    def _load(self):
        from diffusers import DDPMScheduler

        logger.info("Loading the decoder '%s' from %s", self.kind, self.source)
        with torch.inference_mode(False), torch.no_grad():  # weights loaded in inference mode could not pass gradients
            pipeline = self._read_weights().to(self.device)
            pipeline.set_progress_bar_config(disable=True)  # progress is `on_step`'s
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    component.requires_grad_(False).eval()
            self._empty_prompt = self._encode(pipeline, [""])
        # Sampling schedulers differ in what they offer; this one can noise and knows every prediction type.
        self._training_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
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
        options = {"use_safetensors": True, "local_files_only": True}
        try:
            with _without_deprecation_notice():
                parts = {
                    name: getattr(diffusers, self._index[name][1]).from_pretrained(path, torch_dtype=self.dtype, **options)
                    for name, path in shared.items()
                }
                return pipeline_class.from_pretrained(folder, dtype=self.dtype, **options, **self.load_options, **parts)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"Could not load the decoder '{self.kind}' from {folder}: {error}. Restore its files and try again."
            ) from error

    def _pipeline_for_one_call(self):
        """The same frozen modules with a scheduler of its own: pipelines and schedulers keep state during a call."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        return pipeline

    # Options and checks ------------------------------------------------------------------------------------------

    def _read_defaults(self) -> dict[str, Any]:
        folder = local_folder(self.source)
        if folder is None or not (folder / DEFAULTS_FILE).exists():
            return {}
        defaults = read_json(self.source, DEFAULTS_FILE)
        fixed = frozenset(defaults.pop("fixed", ()))
        self.check_options(defaults, where=f"{folder / DEFAULTS_FILE}: ")
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

    def check_options(self, options: dict[str, Any], where: str = "") -> None:
        """Raises a ValueError where `options` hold a name or a value that `generate` would not take."""
        for name, value in options.items():
            if name not in self.defaults:
                known = ", ".join(self.defaults)
                raise ValueError(f"{where}the decoder '{self.kind}' has no option '{name}'. It has: {known}.")
            expected = int if name in INTEGER_OPTIONS else (int, float)
            if value is not None and (not isinstance(value, expected) or value <= 0):
                number = "whole number" if expected is int else "number"
                raise ValueError(f"{where}{name} must be a {number} above 0, got {value!r}.")
            if value is not None and name in self.fixed_options and value != self.generation_defaults[name]:
                raise ValueError(
                    f"{name} must be {self.generation_defaults[name]}: these weights make no other; got {value!r}."
                )

    def _check_conditioning(self, conditioning: torch.Tensor) -> None:
        if conditioning.ndim != 3 or tuple(conditioning.shape[1:]) != self.conditioning_shape:
            queries, width = self.conditioning_shape
            raise ValueError(
                f"The decoder '{self.kind}' at {self.source} takes conditioning of shape [N, {queries}, {width}], got "
                f"{list(conditioning.shape)}. The output projection must be made for this decoder."
            )


def required_size(config: dict, key: str, source: str) -> int:
    """`config[key]`, which must be a whole number above 0."""
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"{source}: expected a whole number above 0 for '{key}' in its configuration, got {value!r}.")
    return value


def picture_size(pipeline: Any, options: dict) -> dict[str, int]:
    """`height` and `width` in pixels, each the one that the UNet was trained for where `options` say None."""
    size = pipeline.unet.config.sample_size
    height, width = (side * pipeline.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size))
    return {"height": options["height"] or height, "width": options["width"] or width}


@contextmanager
def _holding_back(name: str, word: str) -> Iterator[list[str]]:
    """Messages of the logger `name` with this word in them are not logged but listed."""
    held: list[str] = []

    def passes(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if word in message:
            held.append(message)
        return word not in message

    library = logging.getLogger(name)
    library.addFilter(passes)
    try:
        yield held
    finally:
        library.removeFilter(passes)


@torch.no_grad()
def small_pictures(pipeline: Any, latents: torch.Tensor) -> list[Image.Image]:
    """A preview of latents [N, channels, h, w], decoded small: at 512 pixels, a quarter of the work of the whole."""
    from diffusers.image_processor import VaeImageProcessor

    height, width = latents.shape[-2:]
    shrink = min(1.0, PREVIEW_LATENTS / max(height, width))
    small = F.interpolate(latents, size=(max(1, int(height * shrink)), max(1, int(width * shrink))), mode="area")
    pixels = pipeline.vae.decode(small / pipeline.vae.config.scaling_factor).sample
    return VaeImageProcessor().postprocess(pixels, output_type="pil")


def encode_images(pipeline: Any, images: Sequence[Image.Image], options: dict) -> torch.Tensor:
    """Latents [N, channels, h, w] of pictures, scaled and centre-cropped to the size in `options`."""
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=pipeline.vae_scale_factor)
    pixels = processor.preprocess(
        [image.convert("RGB") for image in images], resize_mode="crop", **picture_size(pipeline, options)
    )
    return encode_pixels(pipeline.vae, pixels)


def encode_pixels(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The mode of the latents of `pixels` (in [-1, 1], or a spectrogram), scaled as the UNet sees them."""
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return latents * vae.config.scaling_factor


def _stop_if(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled("The generation was cancelled.")


@contextmanager
def _without_deprecation_notice() -> Iterator[None]:
    """Two pipelines are frozen upstream and say so at each start; the pinned version is our answer to that."""
    upstream = logging.getLogger("diffusers.pipelines.pipeline_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "has been deprecated and will not receive" not in record.getMessage()

    upstream.addFilter(keep)
    try:
        yield
    finally:
        upstream.removeFilter(keep)
