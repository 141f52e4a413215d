"""A model folder from one format to another: other people's checkpoints in, moyun's out.

No MLflow run: nothing is measured, and what was read stands in the new folder's run.yaml, which goes where it goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modules.checkpoint import formats as interop
from modules.checkpoint.adapter import apply_adapter, read_adapter
from modules.checkpoint.loading import open_model, open_tokenizer, verified_hash
from modules.checkpoint.model_folder import write_model
from modules.checkpoint.weights import StoredModel, in_dtype
from modules.config.commands import ConvertConfig
from modules.model.decoder import parameter_count
from modules.system.atomic import new_folder
from modules.system.bounded_read import read_plain_yaml
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.provenance import provenance
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import connect

from .cli.command_line import run_stage, show

NEXT = {
    "moyun": 'python -m pipelines.generate model={target} "白日依山尽，"',
    "modelscope": "modelscope's pipeline('text-generation', model='{target}')",
    "megatron": "modelscope's pipeline('text-generation', model='{target}'), with a process a shard",
    "huggingface": "transformers' AutoModelForCausalLM.from_pretrained('{target}')",
    "gguf": "llama-server -m {target}/model.gguf; python -m pipelines.generate model={target} backend=llama_cpp …",
}

READ_THERE = {"modelscope": "bert", "megatron": "jieba_bpe"}
"""The kind of tokenizer that ModelScope's own classes read from such a folder."""


@dataclass(frozen=True)
class ConvertResult:
    folder: Path
    source_format: str
    parameters: int
    files: list[str]
    """Of the new folder, by their names in it."""


def convert(config: ConvertConfig) -> ConvertResult:
    """Raises CheckpointError for a source that isn't whole, or that the target's format cannot hold."""
    connect(config.tracking)
    source, target = resolve_model(config.source), Path(config.target)
    if target.exists():
        raise FileExistsError(f"target={target} exists already; nothing is overwritten: choose another name")
    model, tokenizer = open_model(source), open_tokenizer(source)
    digest = verified_hash(source)
    check_vocabulary_size(source, model, tokenizer)
    if config.adapter:
        model = apply_adapter(model, read_adapter(config.adapter), digest)
    if config.dtype != "keep" and config.format != "gguf":
        model = in_dtype(model, getattr(torch, config.dtype))
    notes: list[str] = []
    if config.format == "moyun":
        write_moyun(config, source, digest, model, tokenizer)
    else:
        options: dict[str, dict[str, Any]] = {
            "megatron": {"tensor_parallel": config.tensor_parallel},
            "gguf": {"dtype": config.dtype},
        }
        with new_folder(target, "a model folder") as draft:
            notes = interop.write(draft, config.format, model, tokenizer, **options.get(config.format, {}))
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    result = ConvertResult(target, interop.format_of(source), parameter_count(model.config), files)
    summarize(config, model, tokenizer, result, notes)
    return result


def check_vocabulary_size(source: Path, model: StoredModel, tokenizer: Tokenizer) -> None:
    assert model.config.vocab_size
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} entries, the model only {model.config.vocab_size}; "
            "they don't belong together"
        )


def write_moyun(config: ConvertConfig, source: Path, digest: str, model: StoredModel, tokenizer: Tokenizer) -> None:
    read: dict[str, Any] = {"path": str(source), "format": interop.format_of(source), "weights_sha256": digest}
    if (source / "run.yaml").is_file():  # how the model was made goes with it
        read["run"] = read_plain_yaml(source / "run.yaml")
    tensors = ((name, tensor.read()) for name, tensor in model.weights.items())
    run = provenance(config, stage="convert", source=read, tokenizer=tokenizer.fingerprint)
    write_model(Path(config.target), model.config, tensors, tokenizer, run)


def summarize(
    config: ConvertConfig, model: StoredModel, tokenizer: Tokenizer, result: ConvertResult, notes: list[str]
) -> None:
    formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.weights.values()})
    if config.format == "gguf" and config.dtype != "keep":
        formats = [config.dtype]
    size = sum((result.folder / name).stat().st_size for name in result.files)
    lines = {
        "from": f"{config.source} ({result.source_format})",
        "parameters": f"{result.parameters:,} in {', '.join(formats)}",
        "files": f"{', '.join(result.files)} ({size / 1e6:,.1f} MB)",
        "tokenizer": tokenizer.kind,
        "now at": str(result.folder),
        "next": NEXT[config.format].format(target=result.folder),
    }
    read_there = READ_THERE.get(config.format, tokenizer.kind)
    if read_there != tokenizer.kind:
        lines["tokenizer"] += f", which comes back to moyun; ModelScope's own code only knows {read_there}"
    if notes:
        lines["mind"] = "; ".join(notes)
    show(f"converted to {config.format}", lines)


if __name__ == "__main__":
    run_stage("convert", convert)
