"""Runs the application until Ctrl-C or SIGTERM: uvicorn, with limits on what comes before a request's body."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nextgpt.errors import UserInputError
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.serve.app import create_app
from nextgpt.serve.settings import EVERYWHERE, ServerSettings

HEADER_SECONDS = 20  # for a request's headers to arrive, from the beginning of the connection or the end of the last answer
CLOSING_SECONDS = 10  # for answers in progress, once the server is closing


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose next request does not begin in time, or whose headers come too slowly."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_nothing_came)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_nothing_came)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._timer.cancel()
        super().handle_websocket_upgrade(event)

    def _close_if_nothing_came(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


class Server:
    """A server that listens already; [`run`] answers.

    Args:
        pipeline: answers.
        settings: who may ask, how much, and where.
        listening: the socket that [`listen`] gave, where that was before the model was loaded.

    Attributes:
        app: the application; more may be mounted in it before it runs.

    Raises:
        UserInputError: the port is taken or the address is not this machine's.
    """

    def __init__(self, pipeline: NextGPTPipeline, settings: ServerSettings, listening: socket.socket | None = None):
        self.settings, self._listening = settings, listening or listen(settings.host, settings.port)
        self.app = create_app(pipeline, settings, created=int(time.time()))
        config = uvicorn.Config(
            self.app,
            http=TimedProtocol,
            h11_max_incomplete_event_size=settings.max_header,
            timeout_keep_alive=HEADER_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
            log_level="warning",
            access_log=False,  # its lines would hold the addresses of media
            server_header=False,
            lifespan="on",
        )
        self._server = _Server(config, self.app)

    def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Answers requests until Ctrl-C, SIGTERM or [`stop`]; answers in progress are stopped then, and all media go.

        Args:
            on_ready: called with the server's address as soon as it answers.
        """
        self._server.on_ready = on_ready and (lambda: on_ready(address_of(self.settings.host, self.port)))
        try:
            self._server.run(sockets=[self._listening])
        finally:
            self._listening.close()

    @property
    def port(self) -> int:
        """Where it listens, though 0 was asked for."""
        return self._listening.getsockname()[1]

    def stop(self) -> None:
        """Ends `run`, from another thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Says when it is ready, and stops answers as soon as it is told to close."""

    def __init__(self, config: uvicorn.Config, app: FastAPI):
        super().__init__(config)
        self.app = app
        self.on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_ready is not None:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.admission.closing = True
        self.app.state.answering.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine. Raises UserInputError where that cannot be."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    # Where the protocol is named asyncio sends at once (TCP_NODELAY); else answers wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((bare, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserInputError(f"cannot listen on {host}, port {port} ({error}): give another --port or --host") from None
    return listening


def address_of(host: str, port: int) -> str:
    """The address of a server that listens at `host`, as a client on this machine names it."""
    host = "localhost" if host in EVERYWHERE else host
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{port}"
