"""The LoggedModels of a run in the store: those of its checkpoints, and which metrics and run belong to a model.

Everything here may be done again, after a kill or an answer that was lost: what is there already stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_RUN_NOTE

CHECKPOINT, STEP = "checkpoint.path", "checkpoint.step"
"""Tags of a checkpoint's LoggedModel, which holds no weights: where they are, and which step it is of."""

VALIDATION = "val/"
"""How the names of validation metrics begin."""


def models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """Those that the run has made and that weren't deleted, the newest first."""
    return search_models(client, [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")


def search_models(client: MlflowClient, experiments: Sequence[str], filter_string: str) -> list[LoggedModel]:
    found: list[LoggedModel] = []
    page = None
    while page is None or page.token:
        page = client.search_logged_models(list(experiments), filter_string, page_token=page.token if page else None)
        found += page
    return found


def keep_checkpoints(client: MlflowClient, run_id: str, fields: Mapping[str, Any]) -> None:
    """Makes the run's checkpoint models those of `steps`: new ones are made, others deleted.

    fields: steps; folder, which holds the checkpoints; dataset, (name, digest) of the validation rows; ended, whether
    these are the ones that the run leaves. They become its outputs then: MLflow couldn't take an output back. saved,
    once the run has saved its model: [step of its weights, when]; logs of an older moyun haven't got it.
    """
    run = client.get_run(run_id)
    made: dict[int, LoggedModel] = {}
    for model in models_of(client, run):
        if CHECKPOINT in model.tags:
            step = int(model.tags[STEP])
            if step in made or step not in fields["steps"]:
                client.delete_logged_model(model.model_id)
            else:
                made[step] = model
    for step in fields["steps"]:
        model = made.get(step) or new_checkpoint(client, run, step, f"{fields['folder']}/step={step}.ckpt")
        if model.status != LoggedModelStatus.READY:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        add_validation(client, run, model, step, fields["dataset"])
        if fields["ended"]:
            add_output(client, run, model, step)
    if saved := fields.get("saved"):
        list_saved(client, run, *saved)


def new_checkpoint(client: MlflowClient, run: Run, step: int, path: str) -> LoggedModel:
    note = f"The checkpoint of step {step}. Its weights aren't in the store; they are in `{path}`."
    return client.create_logged_model(
        run.info.experiment_id,
        name=f"checkpoint-{step}",
        source_run_id=run.info.run_id,
        tags={CHECKPOINT: path, STEP: str(step), MLFLOW_MODEL_IS_EXTERNAL: "true", MLFLOW_RUN_NOTE: note},
        model_type="checkpoint",
    )


def add_output(client: MlflowClient, run: Run, model: LoggedModel, step: int) -> None:
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:  # the store would refuse it
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step)])


def add_validation(
    client: MlflowClient, run: Run, model: LoggedModel, step: int, dataset: Sequence[str] | None
) -> None:
    """Links the run's validation metrics of a step to the model of that step.

    They are logged once more as they are: the run's own history has them and drops them.
    """
    has = {metric.key for metric in model.metrics or ()}
    metrics = [
        metric_of(name, found.value, found.timestamp, step, model.model_id, dataset)
        for name, history in validations_of(client, run)
        if name not in has and (found := value_at(history, step))
    ]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)


def list_saved(client: MlflowClient, run: Run, step: int, time: int) -> None:
    """Makes the run's listed validation metrics those of the model that it saved at `time`, of this step's weights.

    MLflow lists and sorts runs by the last value of a metric: where that is another checkpoint's, the saved model's
    follows it, at the same step.
    """
    metrics = [
        Metric(name, found.value, max(time, history[-1].timestamp + 1), history[-1].step)
        for name, history in validations_of(client, run)
        if (found := value_at(history, step)) and history[-1].value != found.value
    ]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)


def validations_of(client: MlflowClient, run: Run) -> Iterator[tuple[str, list[Metric]]]:
    """The run's validation metrics, each with its values in the order in which MLflow takes one for the last."""
    for name in sorted(run.data.metrics):
        if name.startswith(VALIDATION):
            history = client.get_metric_history(run.info.run_id, name)
            yield name, sorted(history, key=lambda each: (each.step, each.timestamp))


def value_at(history: Sequence[Metric], step: int) -> Metric | None:
    """The first that is a number: a second one of the step is a saved model's."""
    return next((each for each in history if each.step == step and not math.isnan(each.value)), None)


def metric_of(
    name: str, value: float, timestamp: int, step: int, model_id: str | None, dataset: Sequence[str] | None
) -> Metric:
    """A metric of a run, and of a model as well; not of the model where it is NaN, which the store would make 0."""
    if model_id is None or math.isnan(value):
        return Metric(name, value, timestamp, step)
    rows, digest = dataset or (None, None)
    return Metric(name, value, timestamp, step, model_id=model_id, dataset_name=rows, dataset_digest=digest)
