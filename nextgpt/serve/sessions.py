"""The KV caches of conversations between their requests, found again by what was said."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class SessionStore:
    """Keeps the session of a conversation after each answer. Safe to use from several threads.

    A session serves one request at a time: who takes it has it alone. What it holds is compared token by token when it is
    used, so that a wrong one costs time and changes nothing.

    Args:
        new: makes a session.
        most: so many are kept; those that were not used for longest go.
    """

    def __init__(self, new: Callable[[], Any], most: int):
        self.new, self.most = new, most
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, messages: list[dict[str, Any]], owner: str) -> Any:
        """The session of a conversation up to its last answer; a new one where there is none."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return self.new()
        with self._lock:
            session = self._kept.pop(_digest(messages[: answers[-1] + 1], owner), None)
        return self.new() if session is None else session

    def put(self, messages: list[dict[str, Any]], owner: str, session: Any) -> None:
        """Keeps a session for whoever goes on from here."""
        with self._lock:
            self._kept[_digest(messages, owner)] = session
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


def _digest(messages: list[dict[str, Any]], owner: str) -> str:
    digest = hashlib.sha256(owner.encode())
    for message in messages:
        digest.update(f"\n{message['role']}".encode())
        for part in message["content"]:
            kind = part["type"]
            shown = part["text"] if kind == "text" else part.get(kind) if message["role"] == "user" else ""
            shown = shown if isinstance(shown, bytes) else json.dumps(shown).encode()
            digest.update(f"\n{kind} {len(shown)} ".encode() + shown)
    return digest.hexdigest()
