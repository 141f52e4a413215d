"""Real text → a data folder with clean train, validation and test files and a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config.data import PrepareConfig
from modules.data.corpora.folders import GivenRows, prepare_rows, prepare_sample
from modules.data.corpora.manifest import Manifest, read_manifest, signed
from modules.data.corpora.poem_archive import find_or_fetch_archive
from modules.data.corpora.poems import build_corpus
from modules.data.corpora.prose.clone_sets import prepare_clone
from modules.data.corpora.task_corpus import prepare_corpus
from modules.data.corpora.task_sets import CORPORA
from modules.data.quarantine import Quarantine
from modules.data.reading.headers import check_headers
from modules.evaluation.judging.judged_rows import is_judged, judge_answers
from modules.tracking.reuse.stage_key import program_of
from modules.tracking.stage_run import checking, spelled
from modules.tracking.traces.rated_rows import rows_of_traces

from .cli.bad_rows import log_quarantine, show_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show
from .cli.summaries import row_counts, show_prepared


@dataclass(frozen=True)
class PrepareResult:
    run_id: str  # empty where it is no run
    folder: Path
    manifest: dict[str, Any]


def prepare(config: PrepareConfig, recorded: bool = True) -> PrepareResult:
    """DataError (of an archive ValueError) says what can't be used. recorded: as a run; main's dry run needs none."""
    with checking("prepare", config) as begin_run:
        folder, served = config.folder, rows_of_traces(config, spelled("prepare", ""))
        if config.dry_run:
            check_headers(config)  # the command line has done so already, a Python call hasn't
            show("prepare: what will be done", {"source": config.source, "data folder": str(folder)})
            return PrepareResult("", folder, {})
        of_rows = config.data if is_judged(config) else config
        quarantine, program = start_quarantine(of_rows), program_of("prepare", config)
        manifest = signed(folder, read_manifest(folder), make(config, folder, quarantine, served), program)
        show_quarantine(quarantine)
        show_prepared(folder, manifest, spelled("prepare", "near_copies"), program)
        if not recorded:
            return PrepareResult("", folder, manifest)
        (run := begin_run()).log_dict(manifest, "manifest.json")
        log_quarantine(run, quarantine)
        run.log_metrics({f"rows/{name}": count for name, count in row_counts(manifest).items()})
        return PrepareResult(run.info.run_id, folder, manifest)


def make(config: PrepareConfig, folder: Path, quarantine: Quarantine | None, served: GivenRows | None) -> Manifest:
    archive = Path(config.archive) if config.archive else None
    with progress_of("prepare") as report:
        if config.source == "full":
            manifest = build_corpus(find_or_fetch_archive(archive, folder.parent), folder, report)
        elif config.source == "sample":
            manifest = prepare_sample(folder, report=report)
        elif is_judged(config):
            manifest = judge_answers(config, folder, report, quarantine)
        elif config.source in CORPORA:
            manifest = prepare_corpus(CORPORA[config.source], folder, archive, report)
        elif config.is_public:
            manifest = prepare_clone(config, folder, report)
        else:
            report("rows", 0)
            own = folder, config.source, config.columns, config.validation_fraction, config.test_fraction, quarantine
            manifest = prepare_rows(*own, spelled("prepare", ""), config.near_copies, served, config.join)
            report("rows", 1)
    return manifest


if __name__ == "__main__":
    run_stage("prepare", prepare)
