"""Prometheus metrics of one service, in their own registry so that two applications in a process do not collide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from redline.wire import ItemError, ScoreResponse
from redline.wire.correction import CorrectResponse, ItemCorrection

if TYPE_CHECKING:
    from redline_service.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0)
_TOKENS = (64, 256, 1024, 4096, 8192, 16384, 65536)


class Metrics:
    """Counters, histograms and gauges of a service. Their names are part of the public interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "redline_requests_total", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "redline_request_seconds",
            "Time to answer a request",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.items = Counter("redline_items_total", "Items by outcome", ["outcome"], registry=self.registry)
        self.rewrites = Counter("redline_rewrites_total", "Rewrites in answers", registry=self.registry)
        self.scored_tokens = Counter("redline_scored_tokens_total", "Response tokens scored", registry=self.registry)
        self.batch_tokens = Histogram(
            "redline_batch_tokens",
            "Tokens of one forward pass, padding included",
            buckets=_TOKENS,
            registry=self.registry,
        )
        self.batch_items = Histogram(
            "redline_batch_items",
            "Items of one forward pass",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.inference = Counter(
            "redline_inference_seconds_total", "Time spent in forward passes", registry=self.registry
        )
        self.in_flight = Gauge("redline_requests_in_flight", "Requests being answered", registry=self.registry)
        self.model = Gauge("redline_model_info", "The model served", ["name", "digest", "kind"], registry=self.registry)

    def add_engine_gauges(self, engine: Engine) -> None:
        """Add gauges of the queue and of the prefix caches' memory, which are read at each export."""
        gauges = {
            "redline_queued_items": ("Items waiting", lambda: engine.batcher.queued_items),
            "redline_queued_tokens": ("Tokens waiting", lambda: engine.batcher.queued_tokens),
            "redline_prefix_cache_bytes": ("Memory of the prefix caches", lambda: engine.prefix_cache_bytes),
        }
        for name, (description, read) in gauges.items():
            Gauge(name, description, registry=self.registry).set_function(read)

    def count_batch(self, items: int, tokens: int, seconds: float) -> None:
        """Count one forward pass."""
        self.batch_items.observe(items)
        self.batch_tokens.observe(tokens)
        self.inference.inc(seconds)

    def count_response(self, response: ScoreResponse | CorrectResponse) -> None:
        """Count the items of one response."""
        for item in response.items:
            if isinstance(item, ItemError):
                self.items.labels(item.error.code).inc()
            elif isinstance(item, ItemCorrection):
                self.items.labels("corrected").inc()
                self.rewrites.inc(item.rounds)
            else:
                self.items.labels("scored").inc()
                self.rewrites.inc(item.correction is not None)
        self.scored_tokens.inc(response.usage.scored_tokens)

    def export(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)
