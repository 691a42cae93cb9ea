"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "nextgpt"}
        self.requests = Counter("requests", "Requests by path and status.", ["path", "status"], **own)
        self.errors = Counter("errors", "Errors by code.", ["code"], **own)
        self.cancelled = Counter("cancelled", "Requests whose client went away.", **own)
        self.in_progress = Gauge("requests_in_progress", "Requests that are answered or wait for it.", **own)
        self.tokens = Counter("tokens", "Tokens of the LLM: prompt, cached (of the prompt), completion.", ["kind"], **own)
        self.first_token = Histogram(
            "first_token_seconds", "From the request to the first token or medium.", buckets=SECONDS, **own
        )
        self.media_seconds = Histogram("media_seconds", "Seconds that a medium takes.", ["kind"], buckets=SECONDS, **own)
        self.kept_media = Gauge("kept_media", "Files of answers that are kept.", **own)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
