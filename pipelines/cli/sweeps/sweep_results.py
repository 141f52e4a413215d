"""A sweep on the terminal: what will be done, a line a trial, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from modules.config.sweeps.command import SweepConfig
from modules.config.sweeps.space import Dimension
from modules.evaluation.sweeps.confirmation import Confirmation
from modules.evaluation.sweeps.folder import folder_of
from modules.evaluation.sweeps.study import Study, limit_of, method_of
from modules.evaluation.sweeps.sweep_result import PAGE, SweepResult
from modules.evaluation.sweeps.trial_outcome import Outcome
from modules.system.redaction import first_line, redact_text

from ..printing import console, say, show


def sweep_plan(config: SweepConfig, dimensions: Sequence[Dimension]) -> dict[str, str]:
    """Label → text."""
    limit, kept = limit_of(config, dimensions), config.keep_models
    ends = [counted(limit, "trial") if limit else "", f"{config.tokens:,} tokens" if config.tokens else ""]
    ends += [f"{config.minutes:g} minutes" if config.minutes else ""]
    seeds = f"{2 * config.confirm_seeds} further trainings: the best and the next with "
    seeds += f"{counted(config.confirm_seeds, 'seed')} each"
    return {
        "stage": config.stage,
        **{dimension.key: in_words(dimension) for dimension in dimensions},
        "judged by": f"{config.metric}, {'higher' if config.goal == 'maximize' else 'lower'} is better",
        "method": method_of(config, dimensions) + (f", pruner {config.pruner}" if config.pruner != "none" else ""),
        "ends after": " or ".join(filter(None, ends)),
        "to confirm": seeds if config.confirm_seeds else "nothing: confirm_seeds is 0",
        "at a time": counted(config.workers, "trial"),
        "folders kept": "all trials'" if kept < 0 else f"of the best {kept}" if kept > 1 else "of the best trial alone",
        "in": str(folder_of(config)),
    }


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def in_words(dimension: Dimension) -> str:
    if dimension.values:
        return ", ".join(dimension.values)
    return f"{dimension.low:g} to {dimension.high:g}{', on a logarithmic scale' if dimension.log else ''}"


def show_trial(study: Study) -> Callable[[Outcome, bool], None]:
    """A line for each trial that has ended."""

    def tell(one: Outcome, is_best: bool) -> None:
        result = f"{study.config.metric} {one.value:.5g}" if one.value is not None else ""
        if one.state == "stopped":
            result += f", stopped early at step {one.stopped_at}"
        if one.state == "failed":
            result = f"failed: {first_line(str(one.reason))}"
        best = "  best so far" if is_best else ""
        say(redact_text(f"  trial {one.number}  {one.name}  {result}  ({one.facts['seconds']:.0f} s){best}"))

    say("")
    return tell


def show_sweep(result: SweepResult) -> SweepResult:
    """The trials, the best first; whether it is better; and what to do next."""
    table = Table(box=None, title_justify="left")
    for name in ("  trial", *(d.key.rpartition(".")[2] for d in result.dimensions), result.metric, "seconds", ""):
        table.add_column(name)
    for one in [*result.ranked, *(one for one in result.outcomes if one.state != "finished")]:
        score = f"{one.value:.5g}" if one.value is not None else ""
        state = {"finished": "", "stopped": f"stopped early at step {one.stopped_at}"}.get(
            one.state, f"failed: {first_line(str(one.reason))}"
        )
        cells = [f"  {one.number}", *(one.values[d.key] for d in result.dimensions), score]
        cells += [f"{one.facts.get('seconds', 0):.0f}", redact_text(state)]
        table.add_row(*map(Text, cells))
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items() if count)
    console.print(f"\n[bold]sweep: {counts}[/bold]", soft_wrap=True)
    console.print(table)
    if result.importances:
        show("importance", {key: f"{share:.0%}" for key, share in result.importances.items()})
    if result.confirmation:
        show("is the best one better?", confirmation_lines(result.metric, result.confirmation))
    show("sweep: done", closing_lines(result))
    return result


def confirmation_lines(metric: str, found: Confirmation) -> dict[str, str]:
    """Label → text."""
    lines = {
        f"trial {found.best.number}, {metric}": "  ".join(
            f"{best:.5g} (seed {seed})" for seed, best, _ in found.values
        ),
        f"trial {found.other.number}, {metric}": "  ".join(
            f"{other:.5g} (seed {seed})" for seed, _, other in found.values
        ),
    }
    if found.verdict:
        lines["verdict"] = found.verdict
    return lines | {f"failed {index}": error for index, error in enumerate(found.errors, 1)}


def closing_lines(result: SweepResult) -> dict[str, str]:
    best = result.best
    lines = {"best": f"trial {best.number}: {best.name}", result.metric: f"{best.value:.5g}", "run": result.run_id}
    lines["page"] = str(result.folder / PAGE)
    if result.model:
        lines["model folder"] = f"{result.model} (of the best trial; the other trials' folders are removed)"
        lines["next"] = f'python -m pipelines.generate {shlex.quote(f"model={result.model}")} "白日依山尽，"'
    if result.winner is not best:
        return lines | {f"train trial {result.winner.number}, which did better with other seeds": result.command}
    return lines | {"train it again": result.command}
