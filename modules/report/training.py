"""The training run that made a model folder: its curves, as far as the tracking store has them."""

from __future__ import annotations

import logging

from mlflow.exceptions import MlflowException

from ..tracking import metric_history
from .contents import Series

logger = logging.getLogger("moyun.report")
CURVES = {
    "Loss (nats a token)": {"train/loss": "training", "val/loss": "validation"},
    "Learning to stop (validation rows)": {
        "val/end_of_text_found": "end-of-text is likeliest at the end",
        "val/end_of_text_early": "and before it",
    },
}
"""Title of a picture → metric → what its line is called."""


def training_curves(run_id: str | None) -> dict[str, dict[str, Series]]:
    """Title → line → (step, value); a picture for what was logged. Empty where the store doesn't know the run."""
    if not run_id:
        return {}
    try:
        history = metric_history(run_id, [name for lines in CURVES.values() for name in lines])
    except MlflowException as error:
        logger.warning("no training curves in the report: %s", error.message)
        return {}
    curves: dict[str, dict[str, Series]] = {
        title: {line: history[name] for name, line in lines.items() if history[name]} for title, lines in CURVES.items()
    }
    return {title: lines for title, lines in curves.items() if lines}
