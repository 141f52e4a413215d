"""moyun beside other tools on this machine: turns in processes of their own, tables, a picture, an MLflow run."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from modules.system.hardware import default_threads
from modules.tracking.stage_run import stage_run
from modules.tracking.tracked_run import TrackedRun
from pipelines.cli.printing import console, show

from . import machine, tables
from .config import BenchmarkConfig
from .measuring import BenchmarkError, Result, measure, take_turn
from .picture import picture
from .planned_comparisons import LLAMA_CPP, comparisons, own
from .subjects import Comparison, Subject
from .work import Work, make_work, write_models

NEED_MODELS = {"generation", "startup"}
"""Parts that read a model folder."""

CONVERSIONS = [
    Subject("CTranslate2", "benchmarks.peer_ctranslate2:convert", needs=("ctranslate2", "transformers")),
    *(
        own("convert", "GGUF", {"target": f"gguf-{name}", "format": "gguf", "dtype": dtype}, LLAMA_CPP)
        for name, dtype in {"f32": "float32", "bf16": "bfloat16", "q8_0": "q8_0"}.items()
    ),
]
"""What else the model folder is turned into, where somebody is installed who reads it."""


@dataclass(frozen=True)
class BenchmarkResult:
    run_id: str
    tables: dict[str, str]
    """Part → Markdown."""
    data: dict[str, Any]
    """All that was measured, as in the run's table.json."""


def benchmark(config: BenchmarkConfig) -> BenchmarkResult:
    """Raises ValueError before any work where the machine or the document lacks what the parts need."""
    if config.table:
        tables.require_marks(Path(config.table), config.what)
    if "mfu" in config.what:
        require_gpu()
    threads = config.threads or default_threads()
    planned = list(comparisons(config))
    with stage_run("benchmark", config) as run:
        show("benchmark: who takes turns", {comparison.title: listed(comparison) for comparison in planned})
        if config.dry_run:
            return BenchmarkResult(run.info.run_id, {}, {})
        with TemporaryDirectory(prefix="moyun-benchmark-") as folder, console.status("") as status:
            status.update("rows, tokenizer, models")
            work = prepare(config, Path(folder), threads)
            results = [measure(comparison, work, config.rounds, status.update) for comparison in planned]
        return finish(run, config, results, machine.facts(threads))


def prepare(config: BenchmarkConfig, folder: Path, threads: int) -> Work:
    work = make_work(folder, config.model, config.seed, threads)
    if NEED_MODELS & set(config.what):
        write_models(work)
        for conversion in CONVERSIONS:
            if not conversion.missing():
                convert(conversion, work)
    return work


def convert(conversion: Subject, work: Work) -> None:
    """Where a peer can't, its turns will fail, and its rows say so."""
    try:
        take_turn(conversion, work)
    except BenchmarkError:
        if conversion.own:
            raise


def require_gpu() -> None:
    if not torch.cuda.is_available() or not torch.cuda.is_bf16_supported():
        raise BenchmarkError(
            "what=[mfu] measures training in bf16 on an NVIDIA GPU (compute capability 8.0 or more) with a CUDA build "
            "of torch; none is found here. Leave mfu out of what, or run on such a machine: python -m "
            "benchmarks what=[mfu] model=large training.batch_tokens=65536 training.sequence_lengths=[2048]"
        )


def listed(comparison: Comparison) -> str:
    names = [f"{s.name} ({s.missing()})" if s.missing() else s.name for s in comparison.subjects]
    return "; ".join(names)


def finish(run: TrackedRun, config: BenchmarkConfig, results: list[Result], facts: dict[str, str]) -> BenchmarkResult:
    """Prints, logs and writes what was found."""
    command = reproduce(config)
    parts = dict.fromkeys(result.comparison.part for result in results)
    made = {part: tables.markdown(part, results, facts, command) for part in parts}
    data = tables.plain(results, facts)
    run.log_dict(data, "table.json")
    run.log_text("\n\n".join(made.values()), "table.md")
    run.log_figure(picture(results), "benchmark.png")
    run.log_metrics(metrics(data))
    if config.table:
        tables.write_tables(Path(config.table), made)
    for table in made.values():
        console.print(f"\n{table}", markup=False, soft_wrap=True)
    return BenchmarkResult(run.info.run_id, made, data)


def reproduce(config: BenchmarkConfig) -> str:
    """The command as it was given; from Python, what it would have been."""
    given = sys.argv[1:] if Path(sys.argv[0]).stem == "benchmark" else [f"what=[{','.join(config.what)}]"]
    kept = [argument for argument in given if not argument.startswith(("table=", "tracking."))]
    return " ".join(["python -m benchmarks", *kept])


def metrics(data: dict[str, Any]) -> dict[str, float]:
    """Each median, ratio and slope under a name that MLflow takes."""
    found = {f"scaling.{curve['name']}.slope": curve["slope"] for curve in data["curves"]}
    for comparison in data["comparisons"]:
        for row in comparison["rows"]:
            subject = re.sub(r"[^\w.-]+", "_", row["subject"])
            for name in ("value", "ratio"):
                if row[name]:
                    found[f"{comparison['name']}.{subject}.{name}"] = row[name]["median"]
    return found
