"""What stands for a pipeline and for its decoders where they are on other machines."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder, GenerationCancelled
from nextgpt.errors import MachineLost, NextGPTError
from nextgpt.events import Event, ServedBy
from nextgpt.streaming import AnyOf

LOST = "the machine that answered was lost: ask again"
TRIES = 4  # of a request that nothing has come of yet
TRY_AGAIN = 1.0  # seconds


@dataclass(frozen=True)
class RemoteSession:
    """Names a conversation: its requests go where its cache is."""

    id: str


class RemotePipeline:
    """A pipeline's face, over the replicas of a language model.

    Args:
        handle: of the deployment.
        config: of the model.
        decoders: by modality; their configurations alone are read.
    """

    def __init__(self, handle: DeploymentHandle, config: NextGPTConfig, decoders: dict[str, Decoder]):
        self.handle, self.decoders = handle, decoders
        self.input_modalities = ("text", *config.input_modalities)
        self.output_modalities = ("text", *config.signal_tokens)

    def new_session(self) -> RemoteSession:
        """A session for one conversation."""
        return RemoteSession(secrets.token_hex(16))

    def stream(
        self,
        messages: list[dict],
        *,
        session: RemoteSession | None = None,
        cancel: threading.Event | AnyOf | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """As the pipeline's, with [`ServedBy`] first. A replica that is lost before anything has come is replaced.

        Raises:
            MachineLost: a replica was lost in the middle of its answer.
        """
        session = session or self.new_session()
        handle = self.handle.options(stream=True, session_id=session.id)
        for last in range(1 - TRIES, 1):
            began = False
            try:
                for event in _until(handle.stream.remote(messages, session.id, options), cancel):
                    began = began or not isinstance(event, ServedBy)
                    yield event
                return
            except RayError as error:  # one of ours comes as both, with the replica's traceback for its words
                if own := _own_error(error):
                    raise own from None
                if cancel is not None and cancel.is_set():
                    return
                if began or last == 0:
                    raise MachineLost(LOST) from error
                time.sleep(TRY_AGAIN)


class RemoteDecoder:
    """A decoder that computes elsewhere; what is read of its configuration is read here.

    Args:
        local: the decoder, whose weights are never loaded here.
        handle: of its deployment.
    """

    shrinks = False

    def __init__(self, local: Decoder, handle: DeploymentHandle):
        self.local, self.handle = local, handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)

    def generate(
        self, conditioning: dict, *, seeds: Sequence[int], on_step: Any = None, cancel: Any = None, **options: Any
    ) -> list:
        """As the decoder's; steps come without previews.

        Raises:
            MachineLost: the replica was lost.
        """
        stops = list(cancel) if isinstance(cancel, Sequence) else [cancel]
        unwanted = _AllOf(stops) if all(stop is not None for stop in stops) else None
        tensors = {name: tensor.detach().cpu().float().numpy() for name, tensor in conditioning.items()}
        media: list | None = None
        for last in range(1 - TRIES, 1):
            try:
                given = self.handle.options(stream=True).generate.remote(tensors, list(seeds), options)
                for kind, value in _until(given, unwanted):
                    if kind == "step" and on_step is not None:
                        on_step(*value, None)
                    elif kind == "media":
                        media = value
                break
            except RayError as error:  # media come whole or not at all: another replica makes the same
                if own := _own_error(error):
                    raise own from None
                if unwanted is not None and unwanted.is_set():
                    raise GenerationCancelled from None
                if last == 0:
                    raise MachineLost(LOST) from error
                time.sleep(TRY_AGAIN)
        if media is None:
            raise GenerationCancelled
        return media


class _AllOf:
    def __init__(self, stops: Sequence[Any]):
        self.stops = stops

    def is_set(self) -> bool:
        return all(stop.is_set() for stop in self.stops)


def _until(given: Any, cancel: Any) -> Iterator[Any]:
    """What a replica gives; it is told to stop when `cancel` is set or nobody listens any more."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            if cancel.is_set():
                given.cancel()
                return

    if cancel is not None:
        threading.Thread(target=watch, daemon=True).start()
    finished = False
    try:
        yield from given
        finished = True
    finally:
        ended.set()
        if not finished:
            given.cancel()


def _own_error(error: BaseException) -> BaseException | None:
    """The error of ours that a replica raised, out of Ray's wrapping."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, NextGPTError) else None
