"""What /metrics tells Prometheus. Labels are fixed sets, so that no client can make their number grow."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("ok", "refused", "overloaded", "timeout", "disconnected", "failed")


class Metrics:
    """One server's; a registry of its own, since several may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "moyun_requests",
            f"Requests answered, by outcome: {', '.join(OUTCOMES)}",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "moyun_request_seconds",
            "From a request's arrival to its answer's end, of those that were answered with text",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.cached_tokens = Counter(
            "moyun_cached_prompt_tokens",
            "Tokens, of those of all texts' prompts, that were kept from earlier ones and not read again",
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "moyun_time_to_first_token_seconds",
            "From a prompt's entry into the queue to its first token",
            buckets=SECONDS,
            registry=registry,
        )
        self.generated_tokens = Counter("moyun_generated_tokens", "Tokens written", registry=registry)
        self.prompt_tokens = Counter("moyun_prompt_tokens", "Tokens of accepted prompts", registry=registry)

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Asks these whenever the metrics are read."""
        Gauge("moyun_queue_rows", "Prompts that wait for a place", registry=self.registry).set_function(waiting)
        Gauge("moyun_running_rows", "Prompts being continued", registry=self.registry).set_function(running)

    def text(self) -> bytes:
        """Prometheus's text format, version 0.0.4."""
        return generate_latest(self.registry)
