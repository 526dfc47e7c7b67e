"""Prometheus: what is counted and timed, and under which names.

The only file that knows the library. Names end in their unit, counters in `_total`; a sum over a
metric's labels always means something, so cached prompt tokens are a metric of their own. One process
counts for itself: with several workers, scrape each, or run one worker per container.
"""

import time

import prometheus_client as prometheus

from draftloop.errors import DraftloopError, TaskError
from draftloop.prompting.prompt import Completion, Model, Prompt

# Seconds. A constrained answer takes 0.03 s (small model) to tens of seconds; /predict at most 100 s.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0, 120.0)


class Metrics:
    """Everything that `/metrics` shows; `docs/grafana-dashboard.json` draws it."""

    content_type = prometheus.CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.drafts = prometheus.Counter(
            "draftloop_drafts", "Drafts by case and outcome.", ["case", "status"], registry=registry
        )
        self.reasons = prometheus.Counter(
            "draftloop_reasons",
            "Reasons why drafts needed a human, by kind of check.",
            ["case", "kind"],
            registry=registry,
        )
        self.near_duplicates = prometheus.Counter(
            "draftloop_near_duplicates",
            "Drafts for which an earlier, similar task was an example, or whose answer was reused.",
            ["case", "used"],
            registry=registry,
        )
        self.cascade = prometheus.Counter(
            "draftloop_cascade",
            "Drafts of a small model: kept, escalated to the larger one, or kept because that one failed.",
            ["case", "outcome"],
            registry=registry,
        )
        self.late = prometheus.Gauge(
            "draftloop_late_tasks",
            "Tasks promised to Label Studio and not written yet, by any process of this ledger.",
            registry=registry,
        )
        self.predict_seconds = prometheus.Histogram(
            "draftloop_predict_seconds",
            "Time of a /predict call, whatever its number of tasks.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.predicts_in_flight = prometheus.Gauge(
            "draftloop_predicts_in_flight", "Calls of /predict being answered.", registry=registry
        )
        self.model_request_seconds = prometheus.Histogram(
            "draftloop_model_request_seconds",
            "Time of one request to the model server: answered, refused (4xx) or failed.",
            ["outcome"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.model_requests_in_flight = prometheus.Gauge(
            "draftloop_model_requests_in_flight", "Requests at the model server.", registry=registry
        )
        self.prompt_tokens = prometheus.Counter(
            "draftloop_prompt_tokens", "Prompt tokens, cached ones included.", registry=registry
        )
        self.cached_tokens = prometheus.Counter(
            "draftloop_prompt_cached_tokens", "Prompt tokens that the prefix cache held.", registry=registry
        )
        self.completion_tokens = prometheus.Counter(
            "draftloop_completion_tokens", "Answer tokens.", registry=registry
        )

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return prometheus.generate_latest(self._registry)

    def metered(self, model: Model) -> Model:
        """Wrap a model so that its requests and tokens are counted."""
        return _Metered(model, self)


class _Metered:
    """A model whose requests are timed and whose tokens are counted."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics

    @property
    def name(self) -> str:
        return self._model.name

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        metrics, started, outcome = self._metrics, time.monotonic(), "failed"
        with metrics.model_requests_in_flight.track_inprogress():
            try:
                completion = self._model.complete(prompt, timeout_s=timeout_s)
                outcome = "answered"
            except DraftloopError as error:
                outcome = "refused" if isinstance(error, TaskError) else "failed"
                raise
            finally:
                seconds = time.monotonic() - started
                metrics.model_request_seconds.labels(outcome).observe(seconds)
        metrics.prompt_tokens.inc(completion.prompt_tokens)
        metrics.cached_tokens.inc(completion.cached_tokens)
        metrics.completion_tokens.inc(completion.completion_tokens)
        return completion
