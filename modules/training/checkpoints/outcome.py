"""From a training checkpoint to the weights of a model folder, and where the weights came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoint.adapter import adapter_hash, apply_adapter, read_adapter, save_adapter
from ...checkpoint.loading import open_model, verified_hash
from ...checkpoint.training_checkpoint import check_undamaged, trained_weights
from ...config.training import TrainingConfig
from ...data.arrow import fingerprint
from ..setup import TrainingSetup
from .run_manifest import RunManifest, manifest_differences
from .saving import read_progress

ADAPTER = "adapter alone"
CHOSEN = "chosen by"


def parent_of(config: TrainingConfig, start: Path | None) -> dict[str, str] | None:
    """Where the weights came from; by hash as well, since folders and aliases move. CheckpointError if damaged."""
    if start is None:
        return None
    return {"init_from": str(config.train.init_from), "weights_sha256": verified_hash(start)}


def final_weights(
    config: TrainingConfig,
    training: TrainingSetup,
    checkpoint: Path,
    folder: Path,
    parent: dict[str, str] | None,
    metrics: Mapping[str, float] | None = None,
) -> tuple[Iterator[tuple[str, Tensor]], dict[str, str]]:
    """The weights of the model that a run ends with, from its best checkpoint.

    With LoRA they are the start folder's with the adapter merged in; the adapter alone is saved in folder/adapter.

    Args:
        metrics: Of the checkpoint's validation.

    Returns:
        The tensors by name, and what else there is to say: {"chosen by": …}, of a mixture's sources how they changed,
        and perhaps {"adapter alone": its folder}.
    """
    check_undamaged(checkpoint)
    weights = trained_weights(checkpoint)
    progress = read_progress(checkpoint)
    made = {CHOSEN: training.selection.describe(progress["global_step"])}
    made |= {f"  {name}": text for name, text in changes_of_sources(training, progress, metrics or {}).items()}
    if config.lora.rank:
        assert training.start, "TrainingConfig.complaints sees to it"
        assert parent
        base_hash = parent["weights_sha256"]
        tensors = {name: tensor.read() for name, tensor in weights.items()}
        adapter = save_adapter(folder / "adapter", tensors, training.model, config.lora, base_hash, training.tokenizer)
        weights = apply_adapter(open_model(training.start), read_adapter(adapter), base_hash).weights
        made[ADAPTER] = str(folder / "adapter")
    return ((name, tensor.read()) for name, tensor in weights.items()), made


def changes_of_sources(
    training: TrainingSetup, progress: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, str]:
    """Source of a mixture → its perplexity per character before the first step and of the model that was chosen: what
    has been forgotten. Empty where there was no validation before."""
    mixture, validations = training.data.mixture, progress["validations"]
    if not mixture or 0 not in validations:
        return {}
    keys = {name: f"val/{name}/perplexity_per_char" for name in mixture.names}
    return {
        f"{name} before → after": f"{validations[0][key]:.1f} → {metrics[key]:.1f} (perplexity per character)"
        for name, key in keys.items()
        if key in metrics
    }


def result_facts(
    stage: str,
    training: TrainingSetup,
    origin: RunManifest,
    parent: dict[str, str] | None,
    metrics: dict[str, float],
    made: dict[str, str],
) -> dict[str, Any]:
    """What the model folder's run.yaml says of the run beside its configuration."""
    rows = {name: len(split) for name, split in training.splits.items()}
    data = {name: origin.data.get(name) or fingerprint(split) for name, split in training.splits.items()}
    facts: dict[str, Any] = {"stage": stage, "parent": parent, "data": data, "metrics": metrics, "rows": rows}
    facts |= {"tokenizer": training.tokenizer.fingerprint}
    facts |= {"sources": {name: str(place) for name, place in training.places.items()}}
    facts |= {"chosen_by": made[CHOSEN]}
    if training.data.mixture:
        facts |= {"prompt_templates": {name: each.prompt_template for name, each in training.data.tokenizers.items()}}
    return facts | ({"adapter_sha256": adapter_hash(Path(made[ADAPTER]))} if ADAPTER in made else {})


def require_finished(before: RunManifest, now: RunManifest, folder: Path) -> None:
    """ValueError where output_dir holds a finished run that was made otherwise, or whose model folder is gone."""
    if changes := manifest_differences(before, now):
        raise ValueError(
            f"output_dir={folder} holds a finished run that was made differently: {'; '.join(changes.values())}. "
            "To train on, give train.init_from its model folder, or train.resume_from a checkpoint of it, and another "
            "output_dir"
        )
    if not (folder / "model").is_dir():
        raise ValueError(f"output_dir={folder} holds a finished run without its model folder: choose another")
