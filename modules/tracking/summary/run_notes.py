"""A run's description in MLflow, as Markdown: what it is, from what, its scores and samples, and the commands."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from ...config.base import POEMS, StageConfig
from ...config.commands import MainConfig
from ...config.data import POEM_DATA, PrepareConfig
from ...config.evaluation import RegisterConfig
from ...config.preferences.judging import PreparingConfig
from ...system.redaction import first_line, redact, redact_text
from ..outbox.spool import Spool
from ..provenance import REUSED_FROM
from ..run_lifecycle import RUNNING
from ..tracked_run import TrackedRun
from .run_names import given_keys

LONGEST = 5000
"""Characters that any version of MLflow's stores takes for a tag."""

logger = logging.getLogger("moyun.tracking")

WIDEST = 60
"""Characters of a line of code that a page of 1280 pixels has room for."""

PLACE = "output_dir"

MOST_SCORES, MOST_SAMPLES = 12, 3
BESIDE = ("floor_", "baseline_", "champion_")
"""How scores of others begin, which stand in the run's metrics."""

SHOWN = ("val/", "test/", "rows/", "predict/")
"""How the metrics begin that a description lists."""

OF_STAGES = {"from the model": "from_model", "rows": "from_rows", "model": "model"}
"""What is said of a run of main → its tag, which the stages in it have filled in."""


@dataclass
class Logged:
    """What a run has logged, by its local log."""

    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the model that was saved; the last value of each where there is none."""
    rows: dict[str, str] = field(default_factory=dict)
    """Context → name and digest of a data set."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    saved: int | None = None
    """The step of the weights that were saved."""


def read_logged(spool: Spool) -> Logged:
    found, by_step = Logged(), dict[int, dict[str, float]]()
    for record in spool.all():
        fields = record.fields
        if record.kind == "tags":
            found.tags |= fields["values"]
        elif record.kind == "metrics":
            values = {k: v for k, v in fields["values"].items() if k.startswith(SHOWN)}
            found.metrics |= values
            by_step[fields["step"]] = by_step.get(fields["step"], {}) | values
        elif record.kind == "checkpoints" and "saved" in fields:
            found.saved = fields["saved"][0]
            found.metrics |= by_step.get(found.saved, {})
        elif record.kind == "input":
            dataset = fields["dataset"]
            found.rows[fields["context"]] = f"`{dataset['name']}` (digest {dataset['digest'][:12]})"
        elif record.kind == "file" and fields["path"] == "samples.json":
            table = json.loads((spool.folder / fields["file"]).read_bytes())
            found.samples = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return found


def log_description(run: TrackedRun, stage: str, config: StageConfig, end: str = RUNNING) -> None:
    """Into the tag that MLflow shows as the run's description. It raises nothing: the stage's work is worth more."""
    try:
        logged = read_logged(run.spool)
        parts = list(sections(stage, config, logged, end))
        inside = (
            MLFLOW_PARENT_RUN_ID in run.run.data.tags
        )  # of main, which goes on by itself, or a trial, whose folder goes
        after = None if inside or end != "finished" else next_command(run.info.run_id, stage, config)
        parts += [["", "Next:", "", folded(after)]] if after else []
        lines = [line for part in parts for line in part]
        while sum(len(line) + 1 for line in lines) > LONGEST:
            lines = [*lines[:-2], "…"]
        run.set_tags({MLFLOW_RUN_NOTE: redact_text("\n".join(lines))})
    except Exception as error:
        logger.warning("tracking: run %s has no description: %s", run.info.run_id, first_line(error))


def sections(stage: str, config: StageConfig, logged: Logged, end: str) -> Iterator[list[str]]:
    yield [f"**{stage}**: {end}", ""]
    yield [f"- {what}: {text}" for what, text in origin(config, logged).items()]
    if scores := score_lines(logged.metrics):
        yield ["", *scores]
    if logged.samples:
        steps = [sample.get("step") for sample in logged.samples]
        step = logged.saved if logged.saved in steps else steps[-1]
        shown = [sample for sample in logged.samples if sample.get("step") == step]
        yield ["", *(f"> {one_line(s['prompt'])} **{one_line(answer(s))}**  " for s in shown[:MOST_SAMPLES])]
    yield ["", "Made by:", "", folded(command(stage, config))]


def origin(config: StageConfig, logged: Logged) -> dict[str, str]:
    """What it is made from and what came of it, by name."""
    train = getattr(config, "train", None)
    places = {"from the model": getattr(train, "init_from", None), "model": getattr(config, "model", None)}
    places |= {"baseline": getattr(config, "baseline", None), "source": getattr(config, "source", None)}
    places |= {what: logged.tags[tag] for what, tag in OF_STAGES.items() if tag in logged.tags}
    found = {what: f"`{place}`" for what, place in places.items() if isinstance(place, str) and place}
    digests = {"from the model": "sha256.init_from"}
    found |= {
        w: f"{found[w]} (weights {logged.tags[d][:12]})" for w, d in digests.items() if w in found and d in logged.tags
    }
    for context, text in logged.rows.items():
        counted = logged.tags.get(f"rows.{context}")
        found[f"{context} rows"] = f"{text}: {counted}" if counted else text
    if not logged.rows and (counts := {k[5:]: v for k, v in logged.metrics.items() if k.startswith("rows/")}):
        found["rows"] = ", ".join(f"{name} {count:,.0f}" for name, count in counts.items())
    named = {"version": "registered_version", "verdict": "promotion", "was done already by run": REUSED_FROM}
    named |= {"best trial": "best_trial", "better than the next, with other seeds": "confirmed"}
    return found | {what: one_line(logged.tags[tag]) for what, tag in named.items() if tag in logged.tags}


def score_lines(metrics: Mapping[str, float]) -> list[str]:
    """A table of the run's own scores, test before validation, with their intervals where there are any; [] without."""
    scores = (name for name in metrics if not name.startswith("rows/"))
    own = [name for name in scores if not name.partition("/")[2].startswith(BESIDE)]
    names = [name for name in own if not name.endswith(("_low", "_high")) or f"{name.rpartition('_')[0]}" not in own]
    ordered = sorted(names, key=lambda name: (not name.startswith("test/"), f"{name}_low" not in metrics))
    rows = [[name, f"{metrics[name]:.4g}", interval(name, metrics)] for name in ordered[:MOST_SCORES]]
    head = ["score", "value", "95 % interval"][: 3 if any(row[2] for row in rows) else 2]
    return [f"| {' | '.join(row[: len(head)])} |" for row in (head, ["---"] * 3, *rows)] if rows else []


def interval(name: str, metrics: Mapping[str, float]) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"{low:.4g} – {high:.4g}"


def answer(sample: Mapping[str, Any]) -> str:
    """The text without the prompt that it goes on from."""
    return str(sample["text"]).removeprefix(str(sample["prompt"]))


def one_line(text: object) -> str:
    return " / ".join(str(text).split("\n"))


def folded(words: Sequence[str]) -> str:
    """A command as Markdown: MLflow's page wraps no code, and a long line pushes what stands beside it off the page."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > WIDEST:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return "    " + " \\\n    ".join(lines)


def command(stage: str, config: StageConfig) -> list[str]:
    """What makes such a run: every key that isn't as it is anyway, but for places of this run alone."""
    keys = given_keys(stage, config)
    given = redact({key: value for key, value in keys.items() if not key.startswith("tracking.") and PLACE not in key})
    of_stage = given.pop("given", [])  # a sweep's: the keys of what it runs
    arguments = [*(f"{key}={typed(value)}" for key, value in given.items()), *of_stage]
    return ["python", "-m", f"pipelines.{stage}", *map(shlex.quote, arguments)]


def typed(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") if "\n" in value else value
    if isinstance(value, list):  # of the sources of a mixture what they say
        value = [
            {k: v for k, v in one.items() if v not in (None, {})} if isinstance(one, dict) else one for one in value
        ]
    return json.dumps(value, ensure_ascii=False)


def next_command(run_id: str, stage: str, config: StageConfig) -> list[str] | None:
    """What is usually done with what the stage has made."""
    values = asdict(config)
    model = shlex.quote(f"model={values.get('model')}")
    folder = shlex.quote(f"model={Path(values.get('output_dir') or f'outputs/{stage}-{run_id}') / 'model'}")
    after = {
        "pretrain": ["generate", folder, "春"],
        "finetune": ["evaluate", folder],
        "prefer": ["generate", folder, "春"],
        "evaluate": ["register", model],
    }
    if isinstance(config, PrepareConfig):
        rows = config.folder / "quatrains" if config.source in POEM_DATA else config.folder
        training, start = "finetune", POEMS
        if isinstance(config, PreparingConfig) and config.is_judged:
            training, start = "prefer", str(config.model)
        after[stage] = [training, shlex.quote(f"train.init_from={start}"), shlex.quote(f"data.path={rows}")]
    elif isinstance(config, RegisterConfig | MainConfig):
        alias = config.alias if isinstance(config, RegisterConfig) else config.register.alias
        after[stage] = ["generate", f"model=models:/{config.model_name}@{alias}", "春"]
    return ["python", "-m", f"pipelines.{after[stage][0]}", *after[stage][1:]] if stage in after else None
