"""A model folder from one format to another: other people's checkpoints in, moyun's out.

No MLflow run: nothing is measured, and what was read stands in the new folder's run.yaml, which goes where it goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modules.checkpoint import formats
from modules.checkpoint.adapter import apply_adapter, read_adapter
from modules.checkpoint.loading import open_verified
from modules.checkpoint.model_folder import write_model
from modules.checkpoint.weights import StoredModel, in_dtype
from modules.config.commands import ConvertConfig
from modules.model.decoder import parameter_count
from modules.system.atomic import new_folder
from modules.system.bounded_read import read_plain_yaml
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.provenance import provenance
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import connected

from .cli.command_line import run_stage
from .cli.printing import show
from .cli.summaries import conversion


@dataclass(frozen=True)
class ConvertResult:
    folder: Path
    source_format: str
    parameters: int
    files: list[str]
    """Of the new folder, by their names in it."""


def convert(config: ConvertConfig) -> ConvertResult:
    """Raises CheckpointError for a source that isn't whole, or that the target's format cannot hold."""
    with connected(config.tracking):
        source, target = resolve_model(config.source), Path(config.target)
    if target.exists():
        raise FileExistsError(f"target={target} exists already; nothing is overwritten: choose another name")
    model, tokenizer, digest = open_verified(source)
    if config.adapter:
        model = apply_adapter(model, read_adapter(config.adapter), digest)
    if config.dtype != "keep" and config.format != "gguf":
        model = in_dtype(model, getattr(torch, config.dtype))
    write = write_moyun if config.format == "moyun" else write_foreign
    kind = formats.format_of(source)
    notes = write(config, {"path": str(source), "format": kind, "weights_sha256": digest}, model, tokenizer)
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    result = ConvertResult(target, kind, parameter_count(model.config), files)
    show(f"converted to {config.format}", conversion(config, model, tokenizer, result, notes))
    return result


def write_moyun(config: ConvertConfig, read: dict[str, Any], model: StoredModel, tokenizer: Tokenizer) -> list[str]:
    """A moyun folder; read: what it is made of, for its run.yaml."""
    made = Path(read["path"], "run.yaml")
    if made.is_file():  # how the model was made goes with it
        read["run"] = read_plain_yaml(made)
    run = provenance(config, stage="convert", source=read, tokenizer=tokenizer.fingerprint)
    write_model(Path(config.target), model.config, ((n, t.read()) for n, t in model.weights.items()), tokenizer, run)
    return []


def write_foreign(config: ConvertConfig, read: dict[str, Any], model: StoredModel, tokenizer: Tokenizer) -> list[str]:
    """A folder of another format; returns what its users should know."""
    options: Any = {"megatron": {"tensor_parallel": config.tensor_parallel}, "gguf": {"dtype": config.dtype}}
    with new_folder(Path(config.target), "a model folder") as draft:
        return formats.write(draft, config.format, model, tokenizer, **options.get(config.format, {}))


if __name__ == "__main__":
    run_stage("convert", convert)
