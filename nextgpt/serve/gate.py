"""What stands before every request: who may ask, from where, how large and how slow a body may be."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from nextgpt.serve.conversation import MEDIA_PATH
from nextgpt.serve.errors import AUTHENTICATION, PERMISSION, ApiError, too_large, too_many
from nextgpt.serve.metrics import Metrics
from nextgpt.serve.settings import ServerSettings

logger = logging.getLogger(__name__)

OPEN = ("/health", "/ready", MEDIA_PATH)  # media addresses are secrets themselves: pages show them without a key
MODELS = "/v1/models/"
COUNTED = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/health", "/ready", "/metrics", "/openapi.json")
BODIES = 8  # of the largest size that may be held at once
SAFE = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware that refuses what may not come in, with errors as OpenAI's API has them, and counts.

    It reads a request's body before the application sees it. The owner of a request, a digest of its key, stands in
    `scope["state"]["owner"]`.

    Args:
        app: what answers.
        settings: the limits.
        metrics: counts.
        unguarded: beginnings of paths whose application (the chat's page) asks for a key itself and streams its uploads.
    """

    def __init__(self, app: Any, settings: ServerSettings, metrics: Metrics, unguarded: Sequence[str] = ()):
        self.app, self.settings, self.metrics, self.unguarded = app, settings, metrics, unguarded
        self._held = 0  # bytes of bodies of requests in progress
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            self._check_size(scope)
            self._check_host(headers)
            self._check_origin(headers)
        except ApiError as error:
            await self._refuse(error, scope, path, send)
            return
        if scope["type"] == "websocket" or any(path == each or path.startswith(f"{each}/") for each in self.unguarded):
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, path, headers, receive, send)

    async def _answer(self, scope: dict[str, Any], path: str, headers: dict[str, str], receive: Any, send: Any) -> None:
        """A request of the API's own paths."""
        status, body = 0, bytearray()

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            scope.setdefault("state", {})["owner"] = self._owner(path, headers)
            if scope["method"] not in SAFE:
                if path.startswith(OPEN):
                    raise ApiError(405, f"{scope['method']} is not how this is used", code="method_not_allowed")
                _check_content_type(headers)
                await self._read(headers, receive, body)
                receive = _giving(bytes(body), receive)
            await self.app(scope, receive, counted)
            self._count(path, status)
        except ApiError as error:
            await self._refuse(error, scope, path, send)
        except Exception:  # starlette answers it, outside of this
            self._count(path, 500)
            raise
        finally:
            self._held -= len(body)

    async def _refuse(self, error: ApiError, scope: dict[str, Any], path: str, send: Any) -> None:
        self.metrics.errors.labels(error.code).inc()
        self._count(path, error.status)
        if scope["type"] == "http":
            await send_error(error, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})

    def _count(self, path: str, status: int) -> None:
        """Counts a request by its path, as far as it is one of ours: others are the client's choice."""
        known = path if path in COUNTED else next((each for each in (MEDIA_PATH, MODELS) if path.startswith(each)), "other")
        self.metrics.requests.labels(known, str(status)).inc()
        logger.info("%s %s", known, status)

    def _check_size(self, scope: dict[str, Any]) -> None:
        size = (
            len(scope["path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        )
        if size > self.settings.max_header:
            limit = self.settings.max_header
            raise ApiError(
                431, f"the headers have {size} bytes, at most {limit} are taken (max_header)", code="header_too_large"
            )

    def _check_host(self, headers: dict[str, str]) -> None:
        names = self.settings.host_names
        if names is not None and _host_name(headers.get("host", "")) not in names:
            raise ApiError(
                403,
                "the server is not called so: use its own address, or allow the name with --allowed-host",
                type=PERMISSION,
                code="host_not_allowed",
            )

    def _check_origin(self, headers: dict[str, str]) -> None:
        """A page of another place gets nothing: it would use the server with what its visitor may."""
        origin = headers.get("origin")
        if origin is None or {"*", origin} & set(self.settings.allowed_origins):
            return
        try:
            own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:
            own = False
        if not own:
            raise ApiError(
                403,
                "web pages of this origin may not use the server: allow it with --allowed-origin",
                type=PERMISSION,
                code="origin_not_allowed",
            )

    def _owner(self, path: str, headers: dict[str, str]) -> str:
        if not self._keys or path.startswith(OPEN):
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        if not sum(hmac.compare_digest(key, known) for known in self._keys):  # compared with each, whichever fits
            message = "wrong API key" if key else "no API key: send it as Authorization: Bearer …"
            challenge = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, type=AUTHENTICATION, code="invalid_api_key", headers=challenge)
        return hashlib.sha256(key).hexdigest()

    async def _read(self, headers: dict[str, str], receive: Any, body: bytearray) -> None:
        """Reads a body within its limits; what has come stands in `body`, whatever happens, and is counted."""
        limit = self.settings.max_body
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _body_too_large(limit)
        try:
            async with asyncio.timeout(self.settings.upload_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the body broke off", code="incomplete_body")
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise _body_too_large(limit)
                    if self._held > limit * BODIES:
                        raise too_many("too many large requests are in progress: ask again later")
        except TimeoutError:
            message = f"the body did not arrive within {self.settings.upload_seconds:g} s (upload_seconds)"
            raise ApiError(408, message, code="upload_timeout", headers={"Connection": "close"}) from None


def _giving(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that was read already, and then what else comes."""
    given = False

    async def again() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class Admission:
    """How many requests run and wait, in all and of each key.

    Args:
        settings: the limits.
        metrics: shows how many there are.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics):
        self.settings, self.metrics = settings, metrics
        self.closing = False
        self._of: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Requests in progress."""
        return self._of.total()

    @contextmanager
    def place(self, who: str, count: int = 1) -> Iterator[None]:
        """Places for a request of so many answers, until it is answered.

        Raises:
            ApiError: there is none, or the server is closing.
        """
        limits = self.settings
        if self.closing:
            raise ApiError(503, "the server is closing", code="closing", headers={"Retry-After": "30"})
        if self.count + count > limits.max_running + limits.max_waiting:
            raise too_many(f"too many requests are waiting ({limits.max_waiting}, max_waiting): ask again later")
        if self._of[who] + count > limits.max_per_key:
            raise too_many(f"you have {self._of[who]} answers in progress, {limits.max_per_key} are the most (max_per_key)")
        self._of[who] += count
        self.metrics.in_progress.set(self.count)
        try:
            yield
        finally:
            self._of[who] -= count
            if not self._of[who]:
                del self._of[who]
            self.metrics.in_progress.set(self.count)


async def send_error(error: ApiError, send: Any) -> None:
    """Sends an error as a whole answer."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """`localhost:8000` → `localhost`, `[::1]:8000` → `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _check_content_type(headers: dict[str, str]) -> None:
    """A page's form can send other types without asking the browser."""
    found = headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != "application/json":
        message = f"the body is {found or 'of no type'}, expected Content-Type: application/json"
        raise ApiError(415, message, code="unsupported_media_type")


def _body_too_large(limit: int) -> ApiError:
    return too_large(f"the body is larger than {limit / 1e6:g} MB (max_body)")


class FairSemaphore:
    """Whose answer begins next, where more wait than may run: of the owner who has the fewest running.

    Args:
        count: answers that may run at once.
    """

    def __init__(self, count: int):
        self.free = count
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future]] = {}

    async def take(self, owner: str) -> None:
        """Waits for a turn; [`give`] gives it back."""
        if self.free:
            self.free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(owner, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it had come just then
                    self._next()
                raise
        self._running[owner] += 1

    def give(self, owner: str) -> None:
        """A turn is over."""
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._next()

    def _next(self) -> None:
        while self._waiting:
            owner = min(self._waiting, key=lambda each: self._running[each])
            turn = self._waiting[owner].popleft()
            if not self._waiting[owner]:
                del self._waiting[owner]
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1
