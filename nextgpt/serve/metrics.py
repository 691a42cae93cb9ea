"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

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
        self.media_seconds = Histogram(
            "media_seconds", "Seconds that a medium takes, its share of its batch.", ["kind"], buckets=SECONDS, **own
        )
        self.kept_media = Gauge("kept_media", "Files of answers that are kept.", **own)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)

    def watch(self, stats: Callable[[], Any]) -> None:
        """Also shows an engine's counters, as `Engine.stats` has them."""
        self.registry.register(_EngineCollector(stats))


NOW = ("active", "waiting")  # at the moment; all else counts from the start


class _EngineCollector:
    """The counters of an engine's workers: rows of the LLM, media of each decoder, batches by their size, restarts."""

    def __init__(self, stats: Callable[[], Any]):
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self.stats()
        workers = {"language_model": stats.language, **stats.decoders}
        fields: dict[str, list[tuple[list[str], float]]] = {}
        for worker, counters in workers.items():
            for name, value in vars(counters).items():
                if isinstance(value, dict):
                    sizes = [([worker, str(size)], count) for size, count in value.items()]
                    fields.setdefault(f"{name}_by_size", []).extend(sizes)
                else:
                    fields.setdefault(name, []).append(([worker], value))
        for name, rows in fields.items():
            kind = GaugeMetricFamily if name in NOW else CounterMetricFamily
            labels = ["worker", "size"] if name.endswith("_by_size") else ["worker"]
            family = kind(f"nextgpt_engine_{name}", f"{name.replace('_', ' ')} of the engine's workers", labels=labels)
            for label, value in rows:
                family.add_metric(label, value)
            yield family
