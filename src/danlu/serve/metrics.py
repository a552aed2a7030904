"""What the server does, in numbers that Prometheus reads: names as vLLM's and TGI's, with ``danlu_`` before them.

In:  requests and their ends, answers as they are written, the engine's own account.
Out: the text of GET /metrics.
Left out: keeping and drawing them, which is Prometheus' and Grafana's work; who asked: no label names a person.

Intervals are taken from one clock, that of this process, and beside the engine's loop, not in it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response
from starlette.types import Scope

from danlu import __version__
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Piece, Stats
from danlu.serve.reviews import ModerationEvent

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Accountable(Protocol):
    """Who tells what is under way: the engine."""

    def stats(self) -> Stats:
        """How busy it is."""


class Metrics:
    """The numbers of one server, in a registry of their own.

    Attributes:
        registry: where other parts of the server may add theirs.
    """

    def __init__(self, engine: Accountable) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"danlu_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"danlu_{name}", what, ("model",), buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests by route and HTTP status", "route", "status")
        self._rejected = counter("rejected", "Requests that were refused, by the code of the error", "reason")
        self._success = counter("request_success", "Answers written to their end", "model", "finish_reason")
        self._prompt = counter("prompt_tokens", "Tokens read", "model")
        self._generated = counter("generation_tokens", "Tokens written", "model")
        self._findings = counter("moderation", "What the gates found", "stage", "action", "category")
        self._first = histogram("time_to_first_token_seconds", "From asking to the first text", _FIRST)
        self._between = histogram("inter_token_latency_seconds", "Between tokens of an answer", _BETWEEN)
        self._whole = histogram("e2e_latency_seconds", "From asking to the end of the answer", _WHOLE)
        Gauge("danlu_build_info", "Which danlu", ("version",), registry=registry).labels(__version__).set(1)
        registry.register(_EngineAccount(engine))

    def count(self, scope: Scope, status: int) -> None:
        """A request was answered; routes are the paths of the code, so that no client can make up new ones."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(route, status).inc()
        if status >= 400:
            self._rejected.labels(scope.get("state", {}).get("refused") or "unknown").inc()

    def note_finding(self, event: ModerationEvent) -> None:
        """A gate has found something."""
        self._findings.labels(event.stage, event.action, event.category).inc()

    async def watch(self, answers: Answers) -> AsyncIterator[Piece | Finished]:
        """The events of ``answers``, unchanged, timed and counted."""
        asked = time.monotonic()
        prompts = {id(job.prompt): job for job in answers.jobs}  # several answers share one
        for job in prompts.values():
            self._prompt.labels(job.model).inc(len(job.prompt))
        told: dict[int, float] = {}
        counted = dict.fromkeys(range(len(answers.jobs)), 0)
        async for event in answers:
            now, model = time.monotonic(), answers.jobs[event.index].model
            if isinstance(event, Finished):
                fresh = len(event.completion.tokens) - counted[event.index]
                self._whole.labels(model).observe(now - asked)
                self._success.labels(model, event.completion.finish_reason).inc()
            else:
                fresh = len(event.tokens)
                if event.index not in told:
                    self._first.labels(model).observe(now - asked)
                elif fresh:
                    self._between.labels(model).observe((now - told[event.index]) / fresh)
                told[event.index] = now
            counted[event.index] += fresh
            self._generated.labels(model).inc(fresh)
            yield event

    def response(self) -> Response:
        """GET /metrics."""
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})


class _EngineAccount:
    """Reads the engine when Prometheus asks, not at every token."""

    def __init__(self, engine: Accountable) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        used = stats.cache_used / stats.cache_total if stats.cache_total else 0.0
        yield GaugeMetricFamily("danlu_running", "Answers being written", stats.running)
        yield GaugeMetricFamily("danlu_waiting", "Answers that wait", stats.waiting)
        yield GaugeMetricFamily("danlu_kv_cache_usage_ratio", "Share of the key-value cache in use", used)
        yield CounterMetricFamily("danlu_prefix_cache_queries", "Blocks of prompts looked up", stats.prefix_queries)
        yield CounterMetricFamily("danlu_prefix_cache_hits", "Blocks of prompts found", stats.prefix_hits)
