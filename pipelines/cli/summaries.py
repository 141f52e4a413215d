"""What `prepare`, a training, `convert` and `main` say at their end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.checkpoint.weights import StoredModel
from modules.config.commands import ConvertConfig, MainConfig
from modules.config.training import TrainingConfig
from modules.data.splits import kind_of_rows
from modules.evaluation.baselines import NAMES
from modules.system.redaction import redact_text
from modules.tokenizer.tokenizer import Tokenizer

from .printing import console, show

if TYPE_CHECKING:
    from ..convert import ConvertResult
    from .once import Facts

NEXT = {
    "moyun": 'python -m pipelines.generate model={target} "白日依山尽，"',
    "modelscope": "modelscope's pipeline('text-generation', model='{target}')",
    "megatron": "modelscope's pipeline('text-generation', model='{target}'), with a process a shard",
    "huggingface": "transformers' AutoModelForCausalLM.from_pretrained('{target}')",
    "gguf": "llama-server -m {target}/model.gguf",
}


def show_prepared(folder: Path, manifest: Mapping[str, Any]) -> None:
    kind = kind_of_rows(manifest["columns"]) if "columns" in manifest else "rows"
    show(f"prepare: {kind} in {folder}", {name: f"{count:,}" for name, count in row_counts(manifest).items()})


def row_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """File without its suffix → rows, from either kind of manifest."""
    stages = manifest.get("stages", {"": manifest})
    files = {path: entry for stage in stages.values() for path, entry in stage["files"].items()}
    return {path.partition(".")[0]: entry["rows"] for path, entry in files.items() if path != "cleaned.jsonl.gz"}


def show_trained(
    title: str,
    run_id: str,
    model: Path,
    metrics: Mapping[str, float] | None,
    config: TrainingConfig,
    by_itself: bool,
    made: Mapping[str, str] | None = None,
) -> None:
    """A training's end: its scores, run and folders; and what to do next, unless a stage that follows does it.

    made: What there is beside the model folder.
    """
    scores = {name: f"{value:.4g}" for name, value in (metrics or {}).items()}
    facts = scores | {"run": run_id, "model folder": str(model)} | dict(made or {})
    show(title, facts | (next_commands(model, config) if by_itself else {}))


def next_commands(model: Path, config: TrainingConfig) -> dict[str, str]:
    """What can be done with a model folder that training made."""
    place, rows = shlex.quote(f"model={model}"), config.data.test_path or config.data.path
    split = not config.data.test_path and rows and Path(rows).is_dir()
    given = shlex.quote(f"data.path={rows}" if split else f"data.test_path={config.data.test_path or 'FILE'}")
    return {
        "next": f'python -m pipelines.generate {place} "白日依山尽，"',
        "  scores": f"python -m pipelines.evaluate {place} {given}",
        "  a server": f"python -m pipelines.serve {place}",
    }


READ_THERE = {"modelscope": "bert", "megatron": "jieba_bpe"}
"""The kind of tokenizer that ModelScope's own classes read from such a folder."""


def conversion(
    config: ConvertConfig, model: StoredModel, tokenizer: Tokenizer, result: ConvertResult, notes: list[str]
) -> dict[str, str]:
    """Of a conversion: from what, how large, and what to do with it."""
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
    return lines


def show_whole_way(config: MainConfig, uri: str, evaluated: Facts, registered: Facts) -> None:
    """At the end of `main`: scores, texts, the version, and the commands to try. uri: of the tracking store."""
    names = {"baseline": "before fine-tuning", "model": "after fine-tuning"}
    found = evaluated["scores"]
    floor = {name: found[name] for name in NAMES if name in found}
    rows, after = evaluated["rows"], found["model"]
    numbers = {
        **{names[name]: f"{found[name]:.1f}" for name in names if name in found},
        **{f"floor: {name}": f"{value:.1f}" for name, value in floor.items()},
    }
    show(f"Perplexity per character on {rows} test rows (lower is better)", numbers)
    if floor:
        best = min(floor, key=lambda name: floor[name])
        side = "below" if after < floor[best] else "above"
        console.print(
            f"  The model is {side} the best floor, the {best}: it predicts these rows "
            f"{'better' if side == 'below' else 'worse'} than n-grams of its fine-tuning rows.\n"
        )
    show("Sampled continuations", {sample["prompt"]: sample["text"] for sample in evaluated["samples"]})
    name, alias = config.model_name, config.register.alias
    show("Registered", {f"{name} version {registered['version']}": f"{alias} {registered['reason']}"})
    uri = redact_text(uri)
    console.print("\n[bold]Try next[/bold] (after: source .venv/bin/activate)")
    console.print(f"  mlflow ui --backend-store-uri '{uri}'", soft_wrap=True)
    console.print(f"  python -m pipelines.generate '白日依山尽，' model=models:/{name}@{alias}", soft_wrap=True)
    console.print(
        f"  MLFLOW_TRACKING_URI='{uri}' mlflow models serve -m 'models:/{name}@{alias}' --env-manager local -p 5001",
        soft_wrap=True,
    )
