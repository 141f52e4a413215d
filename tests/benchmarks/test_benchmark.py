"""The benchmark from end to end at its smallest; its arithmetic on numbers made up here. No timing is asserted."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch

from benchmarks import measuring, planned_comparisons, tables
from benchmarks.benchmark import benchmark
from benchmarks.config import PARTS
from benchmarks.measuring import BenchmarkError, Result, Row, Spread, measure, take_turn
from benchmarks.moyun_turns import joined
from benchmarks.picture import picture
from benchmarks.scaling import Curve
from benchmarks.subjects import Comparison, Subject
from benchmarks.work import Work, make_work
from modules.config.loader import ConfigError, load_config
from modules.config.model import ModelConfig
from modules.model import linear as products
from modules.model.decoder import Decoder
from modules.training.planning.flops import flops_per_token
from tests.helpers.models import ROOT

SMALLEST = [
    "model=tiny",
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "rounds=1",
    "threads=1",
    "training.sequence_lengths=[32]",
    "training.batch_tokens=128",
    "training.steps=2",
    "generation.rows=[2]",
    "generation.prompt_tokens=8",
    "generation.new_tokens=4",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.mktemp("work"), load_config("benchmark", SMALLEST).model, seed=1, threads=1)


def turns(*values: float, **more: float) -> list[dict[str, Any]]:
    return [{"value": value, **more} for value in values]


def made_up(higher_is_better: bool = True) -> Result:
    subjects = [Subject("moyun", "pipelines.x:y"), Subject("peer", "modules.x:y"), Subject("absent", "modules.x:y")]
    compared = Comparison("training.8", "training", "Training", "tokens/s", subjects, higher_is_better)
    rows = [
        Row("moyun", turns=turns(10.0, 30.0, 20.0, peak_gib=1.0)),
        Row("peer", turns=turns(5.0, 10.0, 20.0, peak_gib=1.5)),
        Row("absent", "not installed"),
    ]
    return Result(compared, rows)


# --- the whole way ---


def test_the_smallest_benchmark_from_end_to_end(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real turns of moyun and of transformers, into a document, a JSON file and a picture."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "caches"))
    document = store / "performance.md"
    document.write_text((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    result = benchmark(load_config("benchmark", [*SMALLEST, "what=[training,generation]", f"table={document}"]))

    written = document.read_text(encoding="utf-8")
    for part in ("training", "generation"):
        table = written.partition(f"<!-- benchmark:begin {part} -->")[2].partition(f"<!-- benchmark:end {part} -->")[0]
        assert table.strip() == result.tables[part]
    assert re.search(r"\| moyun, pipelines\.finetune \| [\d,.]+ \|  \| \d\.\d\d GiB \|", written)
    assert re.search(r"\| Hugging Face, packed \| [\d,.]+ \| [\d,.]+ \| \d\.\d\d GiB \|", written)
    assert str(store) not in written
    assert not (store / "caches" / "moyun").exists()  # a turn finds nothing that another has computed

    names = {row["subject"] for compared in result.data["comparisons"] for row in compared["rows"]}
    assert {"Hugging Face, padded to 32 (as ModelScope does)", "litgpt, packed"} <= names
    failed = [row for compared in result.data["comparisons"] for row in compared["rows"] if row["missing"]]
    assert all("installed" in row["missing"] for row in failed), failed

    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["training.32.float32.Hugging_Face_packed.ratio"] > 0
    folder = Path(mlflow.artifacts.download_artifacts(run_id=result.run_id))
    assert json.loads((folder / "table.json").read_text(encoding="utf-8")) == result.data
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_turn_has_its_own_memory_and_none_of_this_runs_store(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "mine")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    small = take_turn(Subject("small", "benchmarks.machine:products", {"tokens": 2, "repeats": 1}), work)
    large = take_turn(Subject("large", "tests.benchmarks.benchmark_turn:half_a_gibibyte"), work)
    assert large["environment"] == []
    assert large["peak_gib"] - small["peak_gib"] > 0.25
    assert small["value"] != small["seconds"]
    assert large["value"] == large["seconds"]


def test_a_peer_that_fails_is_a_row_and_moyuns_failure_an_error(work: Work) -> None:
    subjects = [
        Subject("absent", "benchmarks.nothing:here", needs=("no_such_module",)),
        Subject("broken", "benchmarks.nothing:here"),
    ]
    result = measure(Comparison("x", "training", "X", "s", subjects), work, 1, print)
    absent, broken = result.rows
    assert absent.missing
    assert "not installed" in absent.missing
    assert broken.missing
    assert "No module named 'benchmarks.nothing'" in broken.missing
    with pytest.raises(BenchmarkError, match="has no attribute 'nothing'"):
        measure(Comparison("x", "training", "X", "s", [Subject("m", "benchmarks.moyun_turns:nothing")]), work, 1, print)


def test_an_interrupted_benchmark_leaves_no_process(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    family: list[psutil.Process] = []

    def interrupted(process: subprocess.Popen[bytes]) -> None:
        while len(family) < 2:
            time.sleep(0.05)
            family[:] = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        raise KeyboardInterrupt

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setattr(measuring, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take_turn(Subject("endless", "tests.benchmarks.benchmark_turn:endless"), work)
    psutil.wait_procs(family, timeout=5)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


# --- what everybody works on ---


def test_all_layouts_train_on_the_tokens_they_say(work: Work) -> None:
    from benchmarks.peer_hugging_face import IGNORED, batches

    for layout in ("padded", "longest", "packed"):
        for batch, tokens in batches(work, layout, 32, 128, 3):  # type: ignore[arg-type]
            assert int((batch["labels"][:, 1:] != IGNORED).sum()) == tokens, layout
            assert 100 < tokens < 170
            if layout != "longest":
                assert batch["input_ids"].shape[1] == 32


def test_prompts_have_the_length_they_say(work: Work) -> None:
    texts, ids = work.prompts(3, 8)
    assert len(texts) == len(set(texts)) == 3
    assert [len(row) for row in ids] == [8, 8, 8]


def test_floating_point_operations_are_those_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    decoder = Decoder(ModelConfig(vocab_size=96, **model))
    monkeypatch.setattr(products, "AVX512", False)  # torch doesn't count what oneDNN does
    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(1, 64, dtype=torch.int64)).sum().backward()
    attention = flops_per_token({**model, "vocab_size": 96}, 32) - flops_per_token({**model, "vocab_size": 96}, 0)
    counted = 64 * flops_per_token({**model, "vocab_size": 96}, 0)
    by_operation = counter.get_flop_counts()["Global"]
    assert sum(n for name, n in by_operation.items() if "mm" in str(name)) == counted
    assert attention == 12 * 2 * 64 * 32


def test_joined_texts_all_have_full_length() -> None:
    texts = joined(["一二三", "四五"], 4)
    assert len(texts) >= 2000
    assert {len(text) for text in texts} == {4}
    assert texts[:2] == ["一二三四", "五一二三"]


# --- arithmetic and words ---


def test_ratios_are_taken_within_rounds() -> None:
    result = made_up()
    assert result.ratio(result.rows[1]) == Spread(2.0, 1.0, 3.0)
    assert result.ratio(result.rows[0]) is None
    assert result.ratio(result.rows[2]) is None
    fewer_is_better = made_up(higher_is_better=False)
    assert fewer_is_better.ratio(fewer_is_better.rows[1]) == Spread(0.5, 1 / 3, 1.0)
    result.rows[0].turns = []
    assert result.ratio(result.rows[1]) is None


def test_utilization_is_of_the_cards_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert "494.5 TFLOP/s on NVIDIA H100 80GB HBM3: 50.0% of its 989" in planned_comparisons.utilization(
        989e12 / 2000, {planned_comparisons.FINETUNE: 1000}
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some other card")
    assert "its peak isn't known here" in planned_comparisons.utilization(1e9, {planned_comparisons.FINETUNE: 1000})


def test_the_table_has_a_row_for_everybody() -> None:
    assert list(tables.result_lines(made_up())) == [
        "| | tokens/s | moyun is × as good | peak memory |",
        "|---|---|---|---|",
        "| moyun | 20 (10–30) |  | 1.00 GiB |",
        "| peer | 10 (5–20) | 2 (1–3) | 1.50 GiB |",
        "| absent | not installed | | |",
    ]


def test_a_limit_that_could_not_be_measured_leaves_the_note_out() -> None:
    assert planned_comparisons.share_of_limit(1e9, {planned_comparisons.FINETUNE: 10.0}) == ""


def test_memory_is_compared_by_itself() -> None:
    result = made_up()
    compared = dataclasses.replace(result.comparison, value="peak_gib", unit="GiB", higher_is_better=False)
    assert list(tables.result_lines(Result(compared, result.rows)))[2:4] == ["| moyun | 1 |  |", "| peer | 1.5 | 1.5 |"]


@pytest.mark.parametrize(
    ("exponent", "verdict"), [(1.0, "as it should"), (0.6, "as it should"), (1.3, "grows faster than it should")]
)
def test_a_curve_names_what_grows_too_fast_whatever_is_fixed(exponent: float, verdict: str) -> None:
    costs = [1.0, 2, 4, 8, 16, 32]
    curve = Curve("rows", "rows of text", list(costs), costs, [0.5 + cost**exponent for cost in costs])
    assert curve.verdict == verdict
    assert curve.slope <= exponent


def test_a_picture_has_a_panel_for_each_comparison_and_curve() -> None:
    growth = Subject("moyun", "pipelines.x:y", {"points": [10, 20, 40]})
    row = Row("moyun", turns=[{"value": 4.0, "seconds_of": [1.0, 2.0, 4.0], "costs": [10, 20, 40]}])
    grown = Result(Comparison("scaling.rows", "scaling", "rows", "s", [growth]), [row])
    panels = picture([made_up(), grown]).axes
    assert [panel.get_title() for panel in panels] == ["Training", "rows of text: as it should"]
    assert [bar.get_width() for bar in panels[0].patches] == [10.0, 20.0]


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "before\n<!-- benchmark:begin data -->\nold\n<!-- benchmark:end data -->\nafter\n", encoding="utf-8"
    )
    for _ in range(2):
        tables.write_tables(path, {"data": r"| new \1 |"})
        assert path.read_text(encoding="utf-8") == (
            "before\n<!-- benchmark:begin data -->\n\n| new \\1 |\n\n<!-- benchmark:end data -->\nafter\n"
        )
    with pytest.raises(ValueError, match="has no place for memory: add the lines <!-- benchmark:begin memory -->"):
        tables.require_marks(path, ["data", "memory"])


def test_the_document_has_a_place_for_every_part() -> None:
    tables.require_marks(ROOT / "docs" / "performance.md", PARTS)


# --- configuration ---


def test_lists_of_numbers_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {sequence_lengths: [64, 128]}\nwhat: [data]\n", encoding="utf-8")
    config = load_config("benchmark", [f"config={path}"])
    assert (config.training.sequence_lengths, config.what) == ([64, 128], ["data"])


def test_what_cannot_be_measured_is_refused_all_at_once() -> None:
    wrong = ["what=[training,speed]", "rounds=0", "scaling.rows=[1,2]", "generation.rows=[]"]
    with pytest.raises(ConfigError) as caught:
        load_config("benchmark", [*wrong, "training.sequence_lengths=[2000]", "generation.new_tokens=4000"])
    assert len(caught.value.complaints) == 6


def test_a_gpu_is_asked_for_before_anything_else(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match="none is found here. Leave mfu out"):
        benchmark(load_config("benchmark", [*SMALLEST, "what=[mfu]"]))
    assert not mlflow.search_runs(search_all_experiments=True).size


def test_a_vocabulary_too_small_for_the_rows_is_refused(tmp_path: Path) -> None:
    for value in ("null", "300"):
        model = load_config("benchmark", [*SMALLEST, f"model.vocab_size={value}"]).model
        with pytest.raises(ValueError, match=r"the bundled poems need 4,783 ids"):
            make_work(tmp_path, model, seed=1, threads=1)


def test_a_dry_run_says_who_would_take_turns(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("benchmark", [*SMALLEST, "dry_run=true"])
    benchmark(config)
    said = " ".join(capsys.readouterr().out.split())
    for compared in planned_comparisons.comparisons(config):
        assert compared.title in said
        assert {compared.part} <= set(PARTS)
