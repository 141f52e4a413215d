"""A model's card as Markdown: README.md in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.loading import open_model, open_tokenizer
from ...checkpoint.model_folder import describe_provenance, read_provenance
from ...config.base import is_registered
from ...data.corpora.manifest import source_of
from ...model.decoder import parameter_count
from ...system.atomic import write_text
from ...tokenizer.prompt_template import fill_template
from ...tokenizer.tokenizer import Tokenizer
from ...tracking.tracked_run import TrackedRun
from ..statistics import Metric
from .contents import Report, Series, label, readable
from .verdict import verdict

CARD = "README.md"

TOLD = ("model", "data", "tokenizer", "train", "lora")
"""Sections of the configuration that say what was learnt, and how."""


def model_card(
    name: str,
    report: Report,
    origin: Mapping[str, Any],
    parameters: int,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    template: str | None = None,
) -> str:
    """origin: what run.yaml says of how the model was made. sources: each folder of its data → what they were made
    from, by their manifest. template: what has to be written around a prompt of the task."""
    hashes = origin.get("data", {})
    counts = [(split, f"{count:,}", hashes.get(split, "")) for split, count in origin.get("rows", {}).items()]
    parts = [
        "---\nlanguage: zh\npipeline_tag: text-generation\nlibrary_name: moyun\n---",
        f"# {report.model or name}",
        verdict(report),
        f"A decoder-only Transformer in GPT-3's shape with {parameters / 1e6:.1f} million parameters, made by moyun's "
        f"stage `{origin.get('stage', '?')}`. What it writes is made up.",
        "    from pipelines import pipeline\n"
        f'    pipeline("text-generation", model="{name}")({prompt_of(report, template)})["text"]',
        section("Scores", scores(report)),
        section("Samples", samples(report)),
        section("Learning", [table(("step", *lines), rows) for lines, rows in curves(report)]),
        section("Data", [told_of(sources or {}), table(("rows", "count", "fingerprint (SHA-256)"), counts)]),
        section("Configuration", ["\n".join(f"    {line}" for line in settings(origin))]),
        section("Made by", [table(("", ""), made(origin, report))]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(run: TrackedRun, name: str, folder: Path, report: Report, tokenizer: Tokenizer) -> Path | None:
    """Logs the model's card to the run, and writes it into a folder that the user named; returns the file there.

    tokenizer: the one that asked, whose template the model's own may not have for a prompt alone.

    A registered model's folder may be the store's own copy, which is nobody's to write to: then it returns None.
    """
    origin = read_provenance(folder)
    data = origin.get("config", {}).get("data", {})
    paths = [data.get("path"), *(each["path"] for each in data.get("mix") or ())]
    sources = {path: source_of(path) for path in paths if path}
    template = tokenizer.prompt_template if open_tokenizer(folder).prompt_template is None else None
    text = model_card(name, report, origin, parameter_count(open_model(folder).config), sources, template)
    run.log_text(text, CARD)
    if is_registered(name):
        return None
    write_text(folder / CARD, text)
    return folder / CARD


def section(title: str, parts: Any) -> str:
    content = "\n\n".join(part for part in parts if part)
    return f"## {title}\n{content}" if content else ""


def in_a_line(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items()) + "." if facts else ""


def told_of(sources: Mapping[str, Mapping[str, str]]) -> str:
    """What data were made from, their licences too; of a mixture in an entry each."""
    if len(sources) == 1:
        return in_a_line(next(iter(sources.values())))
    return "\n".join(f"- {path}: {in_a_line(facts) or 'no manifest says.'}" for path, facts in sources.items())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def prompt_of(report: Report, template: str | None = None) -> str:
    """A text of the task to try the model with, as Python and JSON write it."""
    asked = [sample.prompt for sample in report.samples] or [example.source for example in report.examples]
    text = fill_template(template, min(asked, key=len, default="白日依山尽，"))
    return json.dumps(text, ensure_ascii=False)


def scores(report: Report) -> Iterator[str]:
    """Metrics beside each other, the measure first, with 95 % intervals."""
    yield in_a_line(report.facts)
    names = sorted(report.scores, key=lambda name: name != report.measure)
    rows = []
    for name in names:
        found = {who: metric for who, (metric, *_) in report.scores[name].items()}
        title = f"{label(name)} ({next(iter(found.values())).direction})"
        rows.append((title, *(score_in_words(found.get(column.name)) for column in report.columns)))
    yield table(("", *(column.name for column in report.columns)), rows)


def samples(report: Report, most: int = 3) -> Iterator[str]:
    """What the model wrote, as code, so that nothing of it is read as Markdown."""
    texts = [f"{sample.prompt}{sample.text}" for sample in report.samples]
    texts = texts or [f"{example.source}\n→ {example.text}" for example in report.examples if example.text is not None]
    for text in texts[:most]:
        yield "\n".join(f"    {line}" for line in readable(text).splitlines())


def score_in_words(metric: Metric | None) -> str:
    """A score with its 95 % interval; empty where there is none."""
    if metric is None or math.isnan(metric.value):
        return ""
    low, high = metric.interval()
    return f"{metric.value:.4g}" + ("" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]")


def curves(report: Report, most: int = 12) -> Iterator[tuple[list[str], list[tuple[str, ...]]]]:
    """(line names, rows) of each picture, at the steps of its shortest line."""
    for lines in report.curves.values():
        shortest = min(lines.values(), key=len)
        every = -(-len(shortest) // most)
        steps = [step for step, _ in shortest][::-1][::every][::-1]
        rows = [(f"{step:,}", *(f"{near(series, step):.4g}" for series in lines.values())) for step in steps]
        yield list(lines), rows


def near(series: Series, step: float, width: int = 20) -> float:
    """The mean of the last values up to a step: single steps' losses are noisy."""
    before = [value for at, value in series if at <= step]
    last = before[-width if len(series) > 10 * width else -1 :]
    return sum(last) / len(last) if last else math.nan


def settings(origin: Mapping[str, Any]) -> Iterator[str]:
    config = origin.get("config", {})
    for name in TOLD:
        told = assigned(config.get(name) or {})
        for mixed in told.pop("mix", ()):
            yield f"{name}.mix: " + ", ".join(f"{key}={value}" for key, value in assigned(mixed).items())
        if told:
            yield f"{name}: " + ", ".join(f"{key}={value}" for key, value in told.items())


def assigned(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value not in (None, [], {})}


def made(origin: Mapping[str, Any], report: Report) -> list[tuple[str, ...]]:
    known = {
        **describe_provenance(origin, "trained"),
        "finished": origin.get("time"),
        "seed": origin.get("config", {}).get("seed"),
        "machine": ", ".join(f"{key} {value}" for key, value in origin.get("machine", {}).items()),
        "versions": ", ".join(f"{key} {value}" for key, value in origin.get("versions", {}).items()),
        "tokenizer": origin.get("tokenizer"),
        "began with": (origin.get("parent") or {}).get("init_from"),
        **{key: value for key, value in report.made_by.items() if key.startswith("evaluated")},
    }
    return [(key, str(value)) for key, value in known.items() if value]
