"""A model folder from one format to another: other people's checkpoints in, moyun's out.

No MLflow run: nothing is measured, and what was read stands in the new folder's run.yaml, which goes where it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modules.checkpoint import formats
from modules.checkpoint.adapter import Adapter, adapted, read_adapter, write_peft_adapter
from modules.checkpoint.loading import open_verified
from modules.checkpoint.model_folder import made_of, write_model
from modules.checkpoint.weights import StoredModel, in_dtype
from modules.config.commands import ConvertConfig
from modules.data.new_tokens import with_new_tokens
from modules.system.atomic import new_folder
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
    files: list[str]  # of the new folder, by their names in it


def convert(config: ConvertConfig) -> ConvertResult:
    """Raises CheckpointError for a source that isn't whole, or that the target's format cannot hold."""
    with connected(config.tracking):
        source, target = resolve_model(config.source), Path(config.target)
    if target.exists():
        raise FileExistsError(f"target={target} exists already; nothing is overwritten: choose another name")
    model, tokenizer, digest = open_verified(source)
    kind, notes = formats.format_of(source), list[str]()
    if adapter := read_adapter(config.adapter) if config.adapter else None:
        model, tokenizer, notes = adapted(model, tokenizer, adapter, digest)
        model = replace(model, weights=adapter.tensors) if config.format == "peft" else model
    model, tokenizer, new = with_new_tokens(model, tokenizer, config.vocabulary)
    if config.prompt_template is not None:
        tokenizer, notes = tokenizer.with_prompt_template(config.prompt_template, tokenizer.task_templates), []
    if config.dtype != "keep" and config.format != "gguf":
        model = in_dtype(model, getattr(torch, config.dtype))
    if config.format == "moyun":
        run = provenance(config, stage="convert", source=made_of(source, kind, digest), tokenizer=tokenizer.fingerprint)
        write_model(target, model.config, ((n, t.read()) for n, t in model.weights.items()), tokenizer, run)
    else:
        notes += write_foreign(config, model, tokenizer, adapter)
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    result = ConvertResult(target, kind, sum(math.prod(tensor.shape) for tensor in model.weights.values()), files)
    show(f"converted to {config.format}", conversion(config, model, tokenizer, result, notes + new))
    return result


def write_foreign(
    config: ConvertConfig, model: StoredModel, tokenizer: Tokenizer, adapter: Adapter | None
) -> list[str]:
    """A folder of another format; returns what its users should know."""
    options: Any = {"megatron": {"tensor_parallel": config.tensor_parallel}, "gguf": {"dtype": config.dtype}}
    with new_folder(Path(config.target), "a model folder") as draft:
        if adapter and config.format == "peft":
            return write_peft_adapter(draft, adapter, tokenizer)
        return formats.write(draft, config.format, model, tokenizer, **options.get(config.format, {}))


if __name__ == "__main__":
    run_stage("convert", convert)
