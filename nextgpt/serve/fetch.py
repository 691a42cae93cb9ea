"""Fetches the media that a request names by address, without reaching into the networks that the server stands in.

A name is resolved once, every address that it has must be a public one, and the connection goes to what was resolved, so
that a name which changes its address between check and use gains nothing. Every redirect is checked in the same way.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from nextgpt.media import shortened
from nextgpt.media.addresses import is_public
from nextgpt.serve.errors import ApiError, invalid, too_large
from nextgpt.serve.settings import ServerSettings

RESOLVED_AT_ONCE = 16  # names
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "nextgpt"}  # unpacked content has no limit


class PrivateAddress(Exception):
    """A name leads to an address that is not public."""


class CheckedBackend(httpcore.AnyIOBackend):
    """Opens connections to public addresses alone.

    Args:
        allow_private: opens all of them.
    """

    def __init__(self, allow_private: bool):
        self.allow_private = allow_private
        # Apart from the loop's own threads, which decode media: a name server that is slow holds up no more than this.
        self.resolving = ThreadPoolExecutor(RESOLVED_AT_ONCE, "nextgpt-resolve")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As httpcore has it.

        Raises:
            PrivateAddress: one of the host's addresses is not public.
        """
        try:
            resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = await asyncio.get_running_loop().run_in_executor(self.resolving, resolve)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        if not self.allow_private and not all(map(is_public, addresses)):
            raise PrivateAddress
        for last, address in enumerate(addresses, start=1 - len(addresses)):
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                if last == 0:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """No address leads there."""
        raise PrivateAddress


class Fetcher:
    """Fetches files from http(s) addresses.

    Args:
        settings: how large, how long, how many redirects, and whether private addresses too.
    """

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.backend = CheckedBackend(settings.allow_private_addresses)
        self.pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=64,
            keepalive_expiry=0,  # a connection that is kept would outlive the check of its address
            network_backend=self.backend,
        )

    async def fetch(self, address: str, param: str) -> bytes:
        """What stands at an address.

        Args:
            param: the request's field that names it, for errors.

        Raises:
            ApiError: it cannot be fetched, leads to a private network, or is too large.
        """
        try:
            async with asyncio.timeout(self.settings.max_fetch_seconds):
                return await self._follow(address, param)
        except TimeoutError:
            seconds = self.settings.max_fetch_seconds
            raise invalid(f"{shortened(address)}: not fetched within {seconds:g} s", param, "fetch_timeout") from None
        except PrivateAddress:
            raise invalid(
                f"{shortened(address)}: leads into a private network; embed the file as a data: URL",
                param,
                "private_address",
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, ssl.SSLError, OSError) as error:
            reason = type(error).__name__
            raise invalid(f"{shortened(address)}: could not be fetched ({reason})", param, "fetch_failed") from None

    async def _follow(self, address: str, param: str) -> bytes:
        current = address
        for _ in range(self.settings.max_redirects + 1):
            _check_address(current, param)
            async with self.pool.stream("GET", current, headers=HEADERS) as response:
                headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in REDIRECTS and "location" in headers:
                    current = _joined(current, headers["location"], param)
                    continue
                if response.status != 200:
                    raise invalid(f"{shortened(address)}: answered with status {response.status}", param, "fetch_failed")
                if headers.get("content-encoding", "identity") != "identity":
                    raise invalid(f"{shortened(address)}: comes compressed, though not asked for", param, "fetch_failed")
                return await self._read(response, address, param)
        raise invalid(
            f"{shortened(address)}: more than {self.settings.max_redirects} redirects", param, "too_many_redirects"
        )

    async def _read(self, response: httpcore.Response, address: str, param: str) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self.settings.max_media_bytes:
                raise media_too_large(shortened(address), self.settings, param)
        return bytes(data)

    async def close(self) -> None:
        """Closes what is open."""
        await self.pool.aclose()
        self.backend.resolving.shutdown(wait=False, cancel_futures=True)


def media_too_large(name: str, settings: ServerSettings, param: str) -> ApiError:
    """The error for a file that is too large."""
    limit = settings.max_media_bytes / 1e6
    return too_large(f"{name}: larger than {limit:g} MB (max_media_bytes); cut it", param)


def _joined(address: str, location: str, param: str) -> str:
    """Where a redirect leads."""
    try:
        return urljoin(address, location)
    except ValueError:
        raise invalid(f"{shortened(address)}: redirects to what is no address", param, "invalid_url") from None


def _check_address(address: str, param: str) -> None:
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        fits = fits and address.isascii() and address.isprintable() and " " not in address
    except ValueError:
        fits = False
    if not fits:
        raise invalid(
            f"{shortened(address)}: not an http(s) address or a base64 data: URL; files of the server are read for nobody",
            param,
            "invalid_url",
        )
