"""Two runs side by side: python -m pipelines.compare RUN RUN."""

from __future__ import annotations

import sys

from modules.config.commands import CompareConfig
from modules.tracking.run_comparison import RunComparison, compare_runs
from modules.tracking.run_facts import read_run
from modules.tracking.stage_run import connected

from .cli.command_line import RUNS, run_stage, with_positions
from .cli.run_differences import show_differences


def compare(config: CompareConfig) -> RunComparison:
    """What differs between two runs, and the step at which their losses part."""
    with connected(config.tracking):
        found = compare_runs(read_run(config.one), read_run(config.other), config.tolerance)
    show_differences(found, config.tolerance)
    return found


if __name__ == "__main__":
    run_stage("compare", compare, with_positions(sys.argv[1:], *RUNS, stage="compare"))
