"""`python -m tools.scores [TASK …]`: runs the commands of docs/scores.md, and writes its tables and README's.

Trainings that are finished already are taken as they are (their commands name an output_dir); evaluations run anew.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.checkpoint.model_folder import read_provenance
from modules.config.loader import load_config
from modules.evaluation.report.card import score_in_words, table
from modules.evaluation.report.contents import label
from modules.evaluation.task_evaluation import Evaluation
from modules.tracking.provenance import git_state

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT))

PAGE = ROOT / "docs" / "scores.md"
SUMMARIES = [ROOT / "README.md", ROOT / "README.zh.md"]
SECTION = re.compile(r"^## ([\w-]+)\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^    python -m pipelines\.(\w+)(.*)$", re.MULTILINE)
TABLE = re.compile(r"(<!-- scores -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {"model": "fine-tuned", "baseline": "as it comes"}
NGRAMS = ("unigram", "bigram", "trigram")


def main(*chosen: str) -> None:
    state = git_state()
    if state.get("git.dirty") != "false":
        raise SystemExit("the working tree has changes: commit them first, so that the scores can name what made them")
    names = [found[1] for found in SECTION.finditer(PAGE.read_text(encoding="utf-8"))]
    if unknown := set(chosen) - set(names):
        raise SystemExit(f"{PAGE.name} has no section {', '.join(sorted(unknown))}, only {', '.join(names)}")
    results = {}
    try:
        for name in chosen or names:
            results[name] = run(section(name))
    finally:  # not before: from the first line written on, the tree has changes
        for name, (result, model) in results.items():
            origin = read_provenance(Path(model))
            trained = f"trained by run `{origin['run_id']}`, commit `{origin['git.commit'][:7]}`"
            scored = f"Scored by run `{result.run_id}`, commit `{state['git.commit'][:7]}`"
            write(name, result.evaluations, f"{scored}; {trained}.")


def section(name: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    return next(found[0] for found in SECTION.finditer(text) if found[1] == name)


def run(text: str) -> tuple[Any, str]:
    """The result of the last command, which is an evaluation, and its model."""
    result = config = None
    for stage, arguments in COMMAND.findall(text.replace("\\\n", " ")):
        config = load_config(stage, shlex.split(arguments))
        result = getattr(importlib.import_module(f"pipelines.{stage}"), stage)(config)
    assert config
    return result, config.model


def write(name: str, evaluations: Mapping[str, Evaluation], made_by: str) -> None:
    page, old = PAGE.read_text(encoding="utf-8"), section(name)
    content = f"{table(*full(evaluations))}\n\n{made_by}\n"
    new = TABLE.sub(lambda found: f"{found[1]}{content}{found[2]}", old)
    PAGE.write_text(page.replace(old, new), encoding="utf-8")
    for summary in SUMMARIES:
        lines = summary.read_text(encoding="utf-8").splitlines()
        shown = (summarized(line, name, evaluations, made_by) for line in lines)
        summary.write_text("\n".join(shown) + "\n", encoding="utf-8")


def full(evaluations: Mapping[str, Evaluation]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every metric but perplexity per token, by who was scored."""
    by_name = [{metric.name: metric for metric in found.metrics} for found in evaluations.values()]
    names = dict.fromkeys(name for metrics in by_name for name in metrics if name != "perplexity")
    head = ("", *(COLUMNS.get(who, who) for who in shown_first(evaluations)))
    return head, [(label(name), *(score_in_words(metrics.get(name)) for metrics in by_name)) for name in names]


def shown_first(evaluations: Mapping[str, Evaluation]) -> Iterator[str]:
    """Without a baseline it is the model as it comes that was scored."""
    for who in evaluations:
        yield "baseline" if who == "model" and "baseline" not in evaluations else who


def summarized(line: str, name: str, evaluations: Mapping[str, Evaluation], made_by: str) -> str:
    """A row of README: | [task](docs/scores.md#NAME) | words for the measure <!-- MEASURE --> | numbers … |"""
    row = re.match(rf"(\| \[[^|]*\]\(docs/scores\.md#{name}\) \| [^|]*<!-- ([\w ]+) --> \|)", line)
    if not row:
        return line
    values = {who: score_in_words(metric) for who, found in evaluations.items() for metric in found.metrics
              if metric.name == row[2]}  # fmt: skip
    tuned = values.pop("model", "") if "baseline" in evaluations else ""
    before = values.pop("baseline" if "baseline" in evaluations else "model", "")
    counted = [who for who in NGRAMS if who in values]
    best = min(counted, key=lambda who: evaluations[who][row[2]].value, default=None)
    shown = {who: value.split(" ")[0] for who, value in values.items() if who not in counted or who == best}
    without = ", ".join(f"{'people' if who == 'reference' else who} {value}" for who, value in shown.items())
    run, commit = re.findall(r"`(\w+)`", made_by)[:2]
    return " ".join([row[1], tuned, "|", before, "|", without, "|", f"`{run[:8]}` of `{commit}`", "|"])


if __name__ == "__main__":
    main(*sys.argv[1:])
