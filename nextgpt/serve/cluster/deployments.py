"""The deployments: the language model, one for each decoder, and the API before them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import GenerationCancelled
from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.events import Event, MediaProgress, ServedBy
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.loading import load_frozen_decoder
from nextgpt.hub.parts import fetch_model
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.serve.app import create_app
from nextgpt.serve.cluster.bridge import iterate_in_thread
from nextgpt.serve.cluster.remote import RemoteDecoder, RemotePipeline
from nextgpt.serve.settings import ServerSettings, keys_of_environment

ROWS = 16  # requests that a replica of the language model answers at once
KNOWN_SESSIONS = 4096  # conversations whose replica the API remembers
BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
SCALING = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 4}


@serve.deployment(
    name="LanguageModel",
    max_ongoing_requests=ROWS,
    autoscaling_config=SCALING,
    request_router_config=RequestRouterConfig(request_router_class=BY_SESSION),
    graceful_shutdown_timeout_s=600,
)
class LanguageModel:
    """A replica with the encoders and the LLM; media are made by the decoders' replicas.

    Args:
        model: name, folder or repository.
        device, dtype: as for `NextGPTPipeline.from_pretrained`.
        decoders: the deployments by modality.
        max_sessions: conversations whose caches are kept.
    """

    def __init__(self, model: str, device: str, dtype: str, decoders: dict[str, DeploymentHandle], max_sessions: int):
        self.pipeline = NextGPTPipeline.from_pretrained(model, device=device, dtype=dtype)
        for modality, handle in decoders.items():
            self.pipeline.decoders[modality] = RemoteDecoder(self.pipeline.decoders[modality], handle)
        self.sessions, self.max_sessions = OrderedDict(), max_sessions
        self.threads = ThreadPoolExecutor(ROWS)
        self.node = ray.get_runtime_context().get_node_id()

    async def stream(self, messages: list[dict], session_id: str, options: dict) -> AsyncIterator[Event]:
        """The events of an answer; previews stay here."""
        yield ServedBy(self.node)
        session = self.sessions.pop(session_id, None) or self.pipeline.new_session()
        cancel = threading.Event()

        def work(tell: Callable[[Event], None]) -> None:
            for event in self.pipeline.stream(messages, session=session, cancel=cancel, **options):
                tell(event)

        async for event in iterate_in_thread(work, self.threads, cancel):
            yield replace(event, preview=None) if isinstance(event, MediaProgress) else event
        self.sessions[session_id] = session
        while len(self.sessions) > self.max_sessions:
            self.sessions.popitem(last=False)


@serve.deployment(name="Decoder", max_ongoing_requests=1, autoscaling_config=SCALING | {"target_ongoing_requests": 1})
class MediaDecoder:
    """A replica with one decoder.

    Args:
        model, device, dtype: as above.
        modality: of the decoder.
    """

    def __init__(self, model: str, device: str, dtype: str, modality: str):
        config = NextGPTConfig.from_pretrained(fetch_model(model, None))
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.decoder = load_frozen_decoder(config, modality, self.device, self.dtype)
        _ = self.decoder.pipeline  # a replica is ready when its weights are there
        self.threads = ThreadPoolExecutor(1)

    async def generate(self, conditioning: dict, seeds: list[int], options: dict) -> AsyncIterator[tuple[str, Any]]:
        """`("step", (done, total))` after each step, then `("media", [...])`."""
        cancel = threading.Event()

        def work(tell: Callable[[tuple[str, Any]], None]) -> None:
            given = {name: torch.from_numpy(array).to(self.device, self.dtype) for name, array in conditioning.items()}
            try:
                media = self.decoder.generate(
                    given, seeds=seeds, on_step=lambda *step: tell(("step", step[:2])), cancel=cancel, **options
                )
            except GenerationCancelled:
                media = None
            tell(("media", media))

        async for item in iterate_in_thread(work, self.threads, cancel):
            yield item


@serve.deployment(name="Api", num_replicas=1, max_ongoing_requests=1000, graceful_shutdown_timeout_s=600)
@serve.ingress()
class Api:
    """The API before the others. One replica keeps the media of answers; where it is lost, these are.

    Args:
        model: name, folder or repository; its configuration is read, no weights.
        settings: who may ask, and how much.
        language: the language model's deployment.
    """

    def __init__(self, model: str, settings: ServerSettings, language: DeploymentHandle):
        config = NextGPTConfig.from_pretrained(fetch_model(model, None))
        local = {modality: load_frozen_decoder(config, modality, torch.device("cpu")) for modality in config.signal_tokens}
        self.pipeline, self.settings = (
            RemotePipeline(language, config, local),
            replace(settings, max_sessions=KNOWN_SESSIONS),
        )

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.pipeline, self.settings, created=int(time.time()))


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application; `serve deploy` calls it with the `args` of `serve.yaml`.

    Args:
        arguments: `model`, `device`, `dtype` as for `NextGPTPipeline.from_pretrained`; `settings` of [`ServerSettings`], its
            keys by default those of the environment variable `NEXTGPT_API_KEY`; and options of the deployments
            (`num_replicas`, `autoscaling_config`, `ray_actor_options` with fractions of an accelerator …) as
            `language_model`, `api`, and as `decoders` by modality.

    Raises:
        UserInputError: an argument is not known, or a setting is not what it should be.
    """
    known = {"model": "nano", "device": "auto", "dtype": "auto"}
    known |= {"settings": {}, "language_model": {}, "decoders": {}, "api": {}}
    for name in arguments:
        if name not in known:
            raise UserInputError(f"unknown argument {name!r}; {did_you_mean(name, known)}")
    given = known | arguments
    model, device, dtype = given["model"], given["device"], given["dtype"]
    settings = {"model": Path(model).name, "api_keys": keys_of_environment()} | given["settings"]
    settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    names = [field.name for field in fields(ServerSettings)]
    for name in settings:
        if name not in names:
            raise UserInputError(f"unknown setting {name!r}; {did_you_mean(name, names)}")
    config = NextGPTConfig.from_pretrained(fetch_model(model, None))
    decoders = {}
    for modality in config.signal_tokens:
        options = {"name": f"Decoder-{modality}"} | given["decoders"].get(modality, {})
        decoders[modality] = MediaDecoder.options(**options).bind(model, device, dtype, modality)
    own = ServerSettings(**settings)
    language = LanguageModel.options(**given["language_model"]).bind(model, device, dtype, decoders, own.max_sessions)
    return Api.options(**given["api"]).bind(model, own, language)
