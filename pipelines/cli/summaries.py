"""What `prepare`, a training, `convert` and `main` say at their end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.checkpoint.weights import StoredModel
from modules.config.commands import ConvertConfig, MainConfig
from modules.config.evaluation import NGRAMS
from modules.config.preferences.preference import PreferConfig
from modules.config.training import TrainingConfig
from modules.data.corpora.verse import SPLITS
from modules.data.reading.column_names import MESSAGES, TEXT_COLUMNS
from modules.data.splits import kind_of_rows
from modules.system.redaction import redact_text
from modules.tokenizer.tokenizer import Tokenizer

from .printing import console, say_if_older, show

if TYPE_CHECKING:
    from ..convert import ConvertResult
    from .once import Facts

NEXT = {
    "moyun": 'python -m pipelines.generate model={target} "白日依山尽，"',
    "modelscope": "modelscope's pipeline('text-generation', model='{target}')",
    "megatron": "modelscope's pipeline('text-generation', model='{target}'), with a process a shard",
    "huggingface": "transformers' AutoModelForCausalLM.from_pretrained('{target}')",
    "gguf": "llama-server -m {target}/model.gguf",
    "peft": "peft's PeftModel.from_pretrained(model, '{target}') on the source's format=huggingface export",
}


def show_prepared(folder: Path, manifest: Mapping[str, Any], key: str, program: str) -> None:
    """key: `near_copies`, as it is typed. program: the digest of code and libraries, as they are now."""
    kind = kind_of_rows(manifest["columns"]) if "columns" in manifest else "rows"
    show(f"prepare: {kind} in {folder}", describe_prepared(manifest, key))
    say_if_older("prepare", folder, manifest.get("program"), program)


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
    place, store = shlex.quote(f"model={model}"), config.tracking.tracking_uri
    there = [place, *([shlex.quote(redact_text(f"tracking.tracking_uri={store}"))] if store else [])]
    # Its run.yaml names the rows; those that were given from Python nothing can find again.
    known = (config.data.path or config.data.test_path) and not isinstance(config, PreferConfig)
    rows = [] if known else ["data.test_path=FILE"]
    if config.data.mix:  # of whose sources one is scored at a time
        rows = [shlex.quote(f"data.path={config.data.mix[0].path}")]
    return {
        "next": f'python -m pipelines.generate {place} "白日依山尽，"',
        "  scores": " ".join(["python -m pipelines.evaluate", *there, *rows]),
        "  a version": " ".join(["python -m pipelines.register", *there, *rows, "model_name=NAME"]),
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
        ours = NEXT["moyun"].format(target=result.folder)
        lines["next"] = f"{ours} (ModelScope's own classes read the weights alone)"
    if config.vocabulary.path:
        lines["next"] = f"python -m pipelines.finetune train.init_from={result.folder} data.path=ROWS"
    if notes:
        lines["mind"] = "; ".join(notes)
    return lines


def show_whole_way(config: MainConfig, uri: str, evaluated: Facts, registered: Facts) -> None:
    """At the end of `main`: scores, texts, the version, and the commands to try. uri: of the tracking store."""
    names = {"baseline": "before fine-tuning", "model": "after fine-tuning"}
    found = evaluated["scores"]
    floor = {name: found[name] for name in NGRAMS if name in found}
    rows = evaluated["rows"]
    numbers = {
        **{names[name]: f"{found[name]:.1f}" for name in names if name in found},
        **{f"floor: {name}": f"{value:.1f}" for name, value in floor.items()},
    }
    show(f"Perplexity per character on {rows} test rows (lower is better)", numbers)
    if floor:
        best = min(floor, key=lambda name: floor[name])
        side = "below" if found["model"] < floor[best] else "above"
        console.print(
            f"  The model is {side} the best floor, the {best}: it predicts these rows "
            f"{'better' if side == 'below' else 'worse'} than n-grams of "
            f"{counted_rows(config.finetune.data.max_rows)}.\n"
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


def counted_rows(trained_on: int | None) -> str:
    """Which rows n-grams are counted on: all of the set, also where fine-tuning took only so many."""
    return f"all rows of its set, of which it saw the first {trained_on:,}" if trained_on else "its fine-tuning rows"


NAMES_SHOWN = 10
"""Columns that are listed by name."""


def row_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """File without its suffix → rows, from either kind of manifest."""
    stages = manifest.get("stages", {"": manifest})
    files = {path: entry for stage in stages.values() for path, entry in stage["files"].items()}
    counts = {path.partition(".")[0]: entry["rows"] for path, entry in files.items() if path != "cleaned.jsonl.gz"}
    sets = list(dict.fromkeys(name.rpartition("/")[0] for name in counts))

    def place(name: str) -> tuple[int, int]:
        of, _, split = name.rpartition("/")
        return sets.index(of), SPLITS.index(split) if split in SPLITS else len(SPLITS)

    return {name: counts[name] for name in sorted(counts, key=place)}


def describe_prepared(manifest: Mapping[str, Any], key: str) -> dict[str, str]:
    """How many rows there are; of rows of one's own also what was found: columns, copies, groups.

    key: `near_copies`, as it is typed.
    """
    lines = {name: f"{count:,}" for name, count in row_counts(manifest).items()}
    kept = [name for name in manifest.get("columns", ()) if name not in (*TEXT_COLUMNS, MESSAGES)]
    if kept:
        lines["columns kept"] = f"{', '.join(kept)}, beside the texts"
    if traces := manifest.get("traces"):
        lines["served requests"] = ", ".join(f"{count:,} {what}" for what, count in traces.items())
    if others := manifest.get("columns not kept"):
        more = f" and {len(others) - NAMES_SHOWN} more" if len(others) > NAMES_SHOWN else ""
        lines["columns not kept"] = redact_text(", ".join(others[:NAMES_SHOWN]) + more)
    for kind in ("exact", "near"):
        if dropped := manifest.get(f"{kind} copies dropped"):
            lines[f"{kind} copies left out"] = f"{dropped:,}"
    if groups := dict(manifest.get("groups", {})):
        shared = groups.pop("rows of a group in train")
        lines["groups"] = ", ".join(f"{count:,} in {name}" for name, count in groups.items()) + among(shared)
        lines["groups"] += "".join(f"; {name} rows: {reached}" for name, reached in shares_missed(manifest))
    if "near copies" in manifest:
        lines["near copies"] = near_copies_in_words(manifest, key)
    return lines


def shares_missed(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The splits whose share of the rows is a fifth or more from what was asked for, as groups stay whole."""
    counts = {name: count for name, count in row_counts(manifest).items() if name in SPLITS}
    for name, asked in manifest.get("fractions", {}).items():
        found = counts.get(name, 0) / sum(counts.values())
        if "all" in manifest["sha256"] and abs(found - asked) > 0.2 * asked:
            yield name, f"{found:.1%} instead of {asked:.1%}, as near as whole groups allow"


def near_copies_in_words(manifest: Mapping[str, Any], key: str) -> str:
    """The counts, and where some would leak from training into a score the key that leaves them out.

    Where most rows are near copies, that is how these data are, and the key would leave few.
    """
    near = manifest["near copies"]
    if isinstance(near, str) or not near["rows"]:
        return near if isinstance(near, str) else "none"
    most = f" (of one text {near['most of one text']:,})"
    found = f"{near['rows']:,} rows share half of their text with an earlier one{most}{among(near['also in train'])}"
    if manifest["near_copies"] == "drop":
        return f"{found}, but not their answers"
    leaks, few = any(near["also in train"].values()), 2 * near["rows"] < sum(row_counts(manifest).values())
    return found + (f"; {key}=drop leaves them out" if leaks and few else "")


def among(shared: Mapping[str, int]) -> str:
    """How many held-out rows have a relative among the training rows."""
    counts = [f"{count:,} {name} rows" for name, count in shared.items() if count]
    return f"; with training rows among them: {', '.join(counts)}" if counts else ""
