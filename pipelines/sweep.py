"""A stage with different values of some keys, and which did best: python -m pipelines.sweep space.KEY=VALUES …"""

from __future__ import annotations

from modules.config.sweeps.command import SweepConfig
from modules.config.sweeps.space import check_space
from modules.evaluation.sweeps.folder import claimed_sweep, folder_of
from modules.evaluation.sweeps.study import JOURNAL, Study, import_optuna
from modules.evaluation.sweeps.sweep_result import SweepResult, is_done, log_sweep, result_of
from modules.evaluation.sweeps.trials import ROWS, Trials
from modules.evaluation.sweeps.workers import Workers, environments
from modules.system.signals import Stopped
from modules.tracking.stage_run import connected, stage_run

from .cli.command_line import run_stage
from .cli.printing import show
from .cli.sweeps.sweep_results import show_sweep, show_trial, sweep_plan
from .cli.sweeps.sweep_stages import origin_of, settle_formats, try_out


def sweep(config: SweepConfig) -> SweepResult | None:
    """Trials, the best of them confirmed over seeds, and what came of it; None after a dry run."""
    import_optuna()
    dimensions, samples = check_space(config)
    places = environments(config.workers)
    show("sweep: what will be done", sweep_plan(config, dimensions))
    if config.dry_run:
        try_out(config, samples)
        return None
    with connected(config.tracking), claimed_sweep(config, origin_of(config, samples)) as folder:
        rows = None if (folder / JOURNAL).exists() else try_out(config, samples)
        study = Study(folder, config, dimensions)
        if rows:
            study.note(ROWS, {"of": "the sweep's beginning", "rows": rows})
        if is_done(study):
            return show_sweep(result_of(study, folder))
        try:
            with stage_run("sweep", config, study.notes.get("run_id")) as run, Workers(folder, places) as workers:
                study.note("run_id", run.info.run_id)
                settle_formats(study, samples[0])
                trials = Trials(run, study, folder, show_trial(study))
                trials.search(workers)
                trials.confirm(workers)
                return show_sweep(log_sweep(run, study, folder))
        except Stopped as stop:
            said = f"stopped; the same command goes on with it, and with the trials in {folder_of(config)}"
            raise Stopped(int(stop.code or 128) - 128, said) from None


if __name__ == "__main__":
    run_stage("sweep", sweep)
