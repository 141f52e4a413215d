"""The model folder: complete, pickle-free, and either wholly there or not at all.

model.safetensors       weights by the decoder's parameter names, query_key_value in three blocks (all Q, all K, all V)
                        as in the published base checkpoints; above 5 GB several files and model.safetensors.index.json
model.yaml              architecture (config.ModelConfig)
tokenizer.json          with tokenizer_config.json: the tokenizer and its prompt template
run.yaml                where it comes from: resolved config, data, versions
golden.safetensors      a prompt's ids and the logits of its next token, to prove a copy or a reader right; its
                        metadata says what the weights and the tokenizer hash to
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.loader import load_model_config, to_yaml
from ..config.model import ModelConfig
from ..system.atomic import new_folder
from ..system.bounded_read import read_plain_yaml
from ..tokenizer.tokenizer import Tokenizer
from .verification import write_golden
from .weights import (
    StoredModel,
    check_shapes,
    qkv_blocked,
    qkv_interleaved,
    read_weights,
    safetensors_files,
    shapes_of,
    write_weights,
)

FILES = ("golden.safetensors", "model.yaml", "run.yaml", "tokenizer.json", "tokenizer_config.json")
"""What a model folder holds beside its weights."""


def write_model(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    run: Mapping[str, Any],
) -> Path:
    """Writes a model folder under a temporary name, syncs it to disk, then renames it.

    tensors: the decoder's, one by one; no more than one file of them is held in memory. run: the content of run.yaml.
    Raises FileExistsError rather than overwrite.
    """
    folder = Path(folder)
    with new_folder(folder, "a model folder") as draft:
        heads = config.num_attention_heads
        write_weights(draft, ((name, qkv_blocked(name, tensor, heads)) for name, tensor in tensors))
        write_architecture(draft, config)
        (draft / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
        tokenizer.save(draft)
        write_golden(draft, read_model(draft), tokenizer)
    return folder


def write_architecture(folder: Path, config: ModelConfig) -> None:
    """Writes model.yaml; of a SizeConfig the architecture alone."""
    architecture = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
    (folder / "model.yaml").write_text(to_yaml(architecture), encoding="utf-8")


def read_model(folder: Path) -> StoredModel:
    """A moyun model folder, still on disk. Raises CheckpointError where its weights don't fit model.yaml."""
    config = load_model_config(folder / "model.yaml")
    weights, files = read_weights(folder), safetensors_files(folder)
    check_shapes(files[0] if len(files) == 1 else folder, "model.yaml", shapes_of(config), weights)
    heads = config.num_attention_heads
    return StoredModel(config, {name: qkv_interleaved(name, tensor, heads) for name, tensor in weights.items()})


def made_of(source: Path, kind: str, digest: str) -> dict[str, Any]:
    """What run.yaml says of the folder that a model is converted from, its own run.yaml included."""
    facts = {"path": str(source), "format": kind, "weights_sha256": digest}
    path = source / "run.yaml"
    return facts | ({"run": read_plain_yaml(path)} if path.is_file() else {})


def read_provenance(folder: Path) -> dict[str, Any]:
    """How a model was trained: its run.yaml, or that of what it was converted from; empty where there is none."""
    try:
        found = read_plain_yaml(folder / "run.yaml")
    except (OSError, ValueError):
        return {}
    while isinstance(found, dict) and found.get("stage") == "convert":
        source = found.get("source")
        if not isinstance(source, dict) or "run" not in source:  # of a format that doesn't tell
            break
        found = source["run"]
    return found if isinstance(found, dict) else {}


def describe_provenance(facts: Mapping[str, Any], verb: str) -> dict[str, str]:
    """By which run and with which code something was made, for people: {"VERB by run": …, "VERB with code": …}.

    facts: as `read_provenance` gives them; without a run in them nothing is said.
    """
    if not facts.get("run_id"):
        return {}
    commit = str(facts.get("git.commit") or "")[:12] or "not in a checkout"
    changed = " with uncommitted changes" if facts.get("git.dirty") == "true" else ""
    return {f"{verb} by run": str(facts["run_id"]), f"{verb} with code": commit + changed}
