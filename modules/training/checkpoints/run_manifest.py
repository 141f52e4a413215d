"""What a training run was made from (run, configuration, hashes of rows, tokenizer and first weights), kept beside
its checkpoints in origin.json: a resumed run must be made from the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.weights import CheckpointError
from ...config.assignments import as_typed, dotted_items
from ...config.effects.key_effects import Effect, effect_of
from ...config.training import LOSS, TrainingConfig
from ...system.atomic import write_json
from ...system.bounded_read import read_json

CHECKPOINTS = "checkpoints"
MANIFEST = "origin.json"
LOCK = ".lock"
"""Of an output folder: held by the process that writes to it."""

SCORED_KEYS = (
    "task.",
    "generation.max_new_tokens",
    "generation.repetition_penalty",
    "generation.presence_penalty",
    "generation.frequency_penalty",
    "generation.logit_bias",
    "generation.stop",
)
"""Those that change what train.select_by makes of a checkpoint, where it is a measure of texts."""

FIXED_KEYS = ("model.", "tokenizer", "stage", "train.optimizer")
"""What a checkpoint can't be gone on with under another one."""


@dataclass(frozen=True)
class RunManifest:
    stage: str
    run_id: str
    config: dict[str, Any]
    data: dict[str, str]
    """Split → fingerprint of its rows."""
    tokenizer: str
    init_from: str | None
    """SHA-256 of the weights that training started from."""
    resumed_from: str | None = None
    """The checkpoint of another run that it began with."""
    finished: bool = False
    model_uri: str | None = None
    """What a finished run has logged."""
    metrics: dict[str, float] | None = None
    scored_rows: str | None = None
    """Fingerprint of the validation rows with the columns that train.select_by reads; None where that is val/loss."""
    program: str | None = None
    """Digest of the code and libraries that made it; an older moyun didn't keep it."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what training started from beside its rows, as tags of the run."""
        known = {"sha256.tokenizer": self.tokenizer, "sha256.init_from": self.init_from}
        return {name: value for name, value in known.items() if value}


def write_run_manifest(folder: Path, manifest: RunManifest) -> None:
    write_json(folder / MANIFEST, asdict(manifest))


def read_run_manifest(checkpoints: Path) -> RunManifest | None:
    """None where there is none; CheckpointError for one that can't be read."""
    path = checkpoints / MANIFEST
    if not path.is_file():
        return None
    try:
        return RunManifest(**read_json(path))
    except (ValueError, TypeError) as error:
        remedy = "give another output_dir, and train.resume_from with one of the checkpoints in this one"
        raise CheckpointError(f"{path} is damaged ({error}): {remedy}") from error


def require_same(earlier: RunManifest, manifest: RunManifest, allowed: list[str], place: Path) -> None:
    """ValueError naming all that is different and isn't allowed to be."""
    changes = {
        name: text
        for name, text in manifest_differences(earlier, manifest).items()
        if name.startswith(FIXED_KEYS) or not any(name == key or name.startswith(f"{key}.") for key in allowed)
    }
    if not changes:
        return
    hint = f"; or go on all the same with train.allow_changed=[{','.join([*allowed, *changes])}]"
    if any(name.startswith(FIXED_KEYS) for name in changes):
        hint = ""
    raise ValueError(
        f"{place} holds a run that was made differently: {'; '.join(changes.values())}. Give what was given then, "
        f"or another output_dir{hint}"
    )


def manifest_differences(earlier: RunManifest, manifest: RunManifest) -> dict[str, str]:
    """Key → what has changed, in words."""
    found = {}
    if earlier.stage != manifest.stage:
        found["stage"] = f"it is of {earlier.stage}, not {manifest.stage}"
    defaults = asdict(TrainingConfig())  # what keys had that an older moyun's manifest doesn't know
    old, new = (dict(dotted_items(defaults)) | dict(dotted_items(one.config)) for one in (earlier, manifest))
    # How one would be trained, where it is given: the tokenizers themselves are compared below.
    unused = ("tokenizer.",) if new.get("train.init_from") or new.get("tokenizer.path") else ()
    scored = SCORED_KEYS if new.get("train.select_by") != LOSS else ()
    effect = effect_of(TrainingConfig)
    for key in sorted(old.keys() | new.keys()):
        ignored = key.startswith(unused) or (effect(key) is not Effect.RESULT and not key.startswith(scored))
        if ignored or old.get(key) == new.get(key):
            continue
        if key != "model.vocab_size" or earlier.tokenizer == manifest.tokenizer:  # else it follows from the tokenizer
            found[key] = f"{key} was {as_typed(old.get(key))}, and is {as_typed(new.get(key))}"
    splits = sorted(earlier.data.keys() | manifest.data.keys())
    if others := [split for split in splits if earlier.data.get(split) != manifest.data.get(split)]:
        found["data"] = f"the rows for {' and '.join(others)} are others"
    elif earlier.scored_rows and manifest.scored_rows not in (None, earlier.scored_rows):
        found["data"] = "the references (or slots, choices) of the rows for validation are others"
    if earlier.tokenizer != manifest.tokenizer:
        found["tokenizer"] = "the tokenizer is another"
    if earlier.init_from != manifest.init_from:
        found["train.init_from"] = "the weights that training starts from are others"
    return found
