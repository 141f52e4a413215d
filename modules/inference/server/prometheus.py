"""What /metrics tells Prometheus. Labels are fixed sets, so that no client can make their number grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("ok", "refused", "overloaded", "timeout", "disconnected", "failed")

CLIENT_GONE = 499
"""nginx's status for a client that closed the connection; only the metrics see it."""

OUTCOME_OF_STATUS = {
    200: "ok",
    503: "overloaded",
    504: "timeout",
    408: "timeout",
    CLIENT_GONE: "disconnected",
    500: "failed",
}


class Metrics:
    """One server's; a registry of its own, since several may live in one process."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """names: of the API keys, where they have any; then requests and tokens have a label with it."""
        self.names = names
        of_key = ["key"] if names else []
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "moyun_requests",
            f"Requests answered, by outcome: {', '.join(OUTCOMES)}",
            ["endpoint", "outcome", *of_key],
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
        written = ("moyun_generated_tokens", "Tokens written")
        self.generated_tokens = Counter(*written, registry=None if names else registry)
        """Of all requests; where keys have names, /metrics has `tokens_of_key` in its place."""
        self.tokens_of_key = Counter(*written, of_key, registry=registry if names else None)
        self.prompt_tokens = Counter("moyun_prompt_tokens", "Tokens of accepted prompts", of_key, registry=registry)
        for name in names:
            self.tokens_of_key.labels(name), self.prompt_tokens.labels(name)

    def taken(self, prompt_tokens: int, asker: str | None) -> None:
        """A request was accepted. asker: the name of its API key."""
        (self.prompt_tokens.labels(asker or "") if self.names else self.prompt_tokens).inc(prompt_tokens)

    def written(self, tokens: int, asker: str | None) -> None:
        if self.names:
            self.tokens_of_key.labels(asker or "").inc(tokens)

    def ended(self, endpoint: str, outcome: str, asker: str | None, seconds: float) -> None:
        self.requests.labels(endpoint, outcome, *([asker or ""] if self.names else [])).inc()
        if outcome == "ok":
            self.request_seconds.labels(endpoint).observe(seconds)

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Asks these whenever the metrics are read."""
        Gauge("moyun_queue_rows", "Prompts that wait for a place", registry=self.registry).set_function(waiting)
        Gauge("moyun_running_rows", "Prompts being continued", registry=self.registry).set_function(running)

    def text(self) -> bytes:
        """Prometheus's text format, version 0.0.4."""
        return generate_latest(self.registry)


def outcome_of(status: int) -> str:
    return OUTCOME_OF_STATUS.get(status, "refused")
