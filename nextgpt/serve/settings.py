"""What a server allows: who may ask, how much at once, and how large a request and its media may be."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field

from nextgpt.errors import UserInputError

MEGABYTE = 1_000_000
KEY_VARIABLE = "NEXTGPT_API_KEY"
EVERYWHERE = ("0.0.0.0", "::", "")  # the addresses that listen on every network


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server. Sizes are bytes, times seconds.

    Args:
        model: the name that requests call the model by.
        api_keys: one of them must come with a request; none: everybody on this machine may ask.
        host, port: where it listens.
        allowed_hosts: names besides the machine's own that a request may call the server by; `*` for any.
        allowed_origins: web pages that may use the server from a browser, as `https://chat.example.org`; `*` for any.
        public_url: what media addresses begin with; by default the address that the client has used.
        max_running: answers that are given at once; a request with `n` asks for so many.
        max_waiting: answers that may wait for that; more are refused with status 429.
        max_per_key: answers of one key (or of one address, where there are no keys) that run and wait. Of those who wait,
            whoever has the fewest running comes next.
        deadline: the longest that an answer may take, waiting included.
        send_seconds: the longest that a client may leave a piece of a stream unread.
        upload_seconds: the longest that a request's body may take to arrive.
        max_body: of a request.
        max_header: of its first line and its headers together.
        max_messages, max_parts, max_text: of a conversation: messages, parts of all of them, characters of all of them.
        max_media: pieces of media that a conversation may show.
        max_media_bytes: of one of them; what is fetched and what is embedded.
        max_fetch_seconds, max_redirects: for one that is fetched.
        allow_private_addresses: whether media are fetched from private networks too. With it whoever may ask may reach them.
        max_sessions: conversations whose KV caches are kept for their next turn; on several machines, on each of them.
        max_answers: the largest `n`.
        max_new_tokens, max_steps: of an answer; of one of its media.
        max_side, max_frames, max_seconds: of media that are made, where their decoder makes larger ones: pixels, frames.
        media_seconds: how long the media of an answer are kept.
        max_kept_media, max_kept_bytes: how many, and how large together; the oldest go first.
    """

    model: str = "nano"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    public_url: str | None = None
    max_running: int = 16
    max_waiting: int = 64
    max_per_key: int = 32
    deadline: float = 600
    send_seconds: float = 60
    upload_seconds: float = 60
    max_body: int = 64 * MEGABYTE
    max_header: int = 65_536
    max_messages: int = 512
    max_parts: int = 2048
    max_text: int = 1 * MEGABYTE
    max_media: int = 64
    max_media_bytes: int = 32 * MEGABYTE
    max_fetch_seconds: float = 30
    max_redirects: int = 5
    allow_private_addresses: bool = False
    max_sessions: int = 16
    max_answers: int = 8
    max_new_tokens: int = 4096
    max_steps: int = 200
    max_side: int = 1024
    max_frames: int = 128
    max_seconds: float = 30
    media_seconds: float = 3600
    max_kept_media: int = 4096
    max_kept_bytes: int = 1024 * MEGABYTE

    def __post_init__(self):
        if not self.api_keys and not is_loopback(self.host):
            raise UserInputError(
                f"without a key the server is for this machine only, and {self.host or 'every address'} is reached from "
                "others: give --api-key (or NEXTGPT_API_KEY), or --host 127.0.0.1"
            )
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise UserInputError("an API key must have at least 8 printable ASCII characters and no space")

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names that a request may call the server by, in lower case; None for any.

        A web page that points a name of its own at this machine is refused by them.
        """
        if "*" in self.allowed_hosts or (self.host in EVERYWHERE and not self.allowed_hosts):
            return None
        own = {"localhost", "127.0.0.1", "::1", self.host.strip("[]")}
        return frozenset(name.lower() for name in own | set(self.allowed_hosts))


def keys_of_environment() -> tuple[str, ...]:
    """The API keys in `NEXTGPT_API_KEY`, separated by commas."""
    return tuple(key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",") if key.strip())


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
