"""What trainings cost, as the store has it; without the libraries that train, which take seconds to load."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException


def costs_of(run_id: str) -> dict[str, float]:
    """What the store has of a training's costs; nothing where it is away."""
    with suppress(MlflowException):
        metrics = MlflowClient().get_run(run_id).data.metrics
        return {name: value for name, value in metrics.items() if name.startswith("cost/")}
    return {}


def together(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The costs of two trainings, one after the other: sizes don't add up."""
    names = [*one, *(name for name in other if name not in one)]
    sizes = [name for name in names if "memory" in name or name == "cost/parameters"]
    return {n: (max if n in sizes else sum)((one.get(n, 0.0), other.get(n, 0.0))) for n in names}
