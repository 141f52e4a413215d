"""tools/scores.py writes what was measured where it belongs, and nowhere else."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from modules.evaluation.statistics import mean
from modules.evaluation.task_evaluation import Evaluation
from tests.helpers.models import ROOT

READMES = ("README.md", "README.zh.md")


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/scores.py at work on copies of the pages."""
    spec = importlib.util.spec_from_file_location("scores", ROOT / "tools" / "scores.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path in (module.PAGE, *module.SUMMARIES):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(module, "PAGE", tmp_path / module.PAGE.name)
    monkeypatch.setattr(module, "SUMMARIES", [tmp_path / name for name in READMES])
    return module


def sections(scores: ModuleType) -> dict[str, str]:
    return {found[1]: found[0] for found in scores.SECTION.finditer(scores.PAGE.read_text(encoding="utf-8"))}


def found(**values: float) -> Evaluation:
    """What somebody scored on three rows, all alike."""
    metrics = [mean(name, [value] * 3) for name, value in values.items()]
    return Evaluation(metrics)


def test_results_stand_in_their_section_and_in_both_readmes(scores: ModuleType) -> None:
    before = sections(scores)
    evaluations = {"model": found(rougeL=0.25, choice_accuracy=0.5), "baseline": found(rougeL=0.125),
                   "lead": found(rougeL=0.0625), "trigram": found(rougeL=3), "bigram": found(rougeL=2)}  # fmt: skip
    scores.write("summarization", evaluations, "Run `0123456789abcdef`, commit `fedcba9`.")
    after = sections(scores)
    assert {name for name, text in after.items() if text != before[name]} == {"summarization"}
    assert (
        "| ROUGE-L | 0.25 [0.25, 0.25] | 0.125 [0.125, 0.125] | 0.0625 [0.0625, 0.0625] | 3 [3, 3] |"
        in after["summarization"]
    )
    assert "Run `0123456789abcdef`, commit `fedcba9`." in after["summarization"]
    for page in scores.SUMMARIES:
        rows = re.findall(r"scores\.md#summarization\) \| [^|]*-->(.*)", page.read_text(encoding="utf-8"))
        assert rows == [
            " | 0.25 [0.25, 0.25] | 0.125 [0.125, 0.125] | lead 0.0625, bigram 2 | `01234567` of `fedcba9` |",
            " | 0.5 [0.5, 0.5] |  |  | `01234567` of `fedcba9` |",
        ]


def test_no_command_is_passed_over(scores: ModuleType) -> None:
    for text in sections(scores).values():
        stages = [stage for stage, _ in scores.COMMAND.findall(text.replace("\\\n", " "))]
        assert (len(stages), stages[0], stages[-1]) == (text.count("pipelines."), "prepare", "evaluate")


def test_a_model_without_baseline_is_the_one_that_comes(scores: ModuleType) -> None:
    scores.write("poetry", {"model": found(rhyme=0.5), "reference": found(rhyme=0.75)}, "Run `01`, commit `02`.")
    assert "|  | as it comes | reference |" in sections(scores)["poetry"]
    row = "<!-- rhyme --> |  | 0.5 [0.5, 0.5] | people 0.75 | `01` of `02` |"
    assert all(row in page.read_text(encoding="utf-8") for page in scores.SUMMARIES)


@pytest.mark.parametrize("name", READMES)
def test_every_score_of_the_readme_was_measured_by_a_run_in_the_docs(name: str, scores: ModuleType) -> None:
    """A measure that was renamed, or a section that went, would leave old numbers standing."""
    texts = sections(scores)
    row = re.compile(
        r"^\| \[[^|]*\]\(docs/scores\.md#(\w+)\) \| [^|]*<!-- ([\w ]+) -->" + r" \| ([^|]*)" * 4 + r" \|$", re.M
    )
    rows = row.findall((ROOT / name).read_text(encoding="utf-8"))
    assert {row[0] for row in rows} == {section for section, text in texts.items() if "Scored by run" in text}
    for section, measure, tuned, before, _, run in rows:
        (line,) = [line for line in texts[section].splitlines() if line.startswith(f"| {scores.label(measure)} |")]
        assert all(f"| {value} |" in line for value in (tuned, before) if value)
        assert run.strip("`").split("`")[0] in texts[section]
