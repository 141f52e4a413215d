"""A stage's key is another where the stage may come out otherwise, and the same where it can't."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from modules.config.loader import load_config
from modules.tracking.reuse import stage_key as reuse
from modules.tracking.reuse.contents import checksums, content_of
from modules.tracking.reuse.imported_code import MODULES, code_behind, code_digest
from modules.tracking.reuse.stage_key import stage_key

TUNED = ["train.init_from=models/poems", "data.path=rows"]


def key(stage: str, *arguments: str) -> str | None:
    return stage_key(stage, load_config(stage, arguments), {"models/poems": "its digest"})[0]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"src_txt": "春"}\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "argument",
    ["train.learning_rate=1", "seed=1", "train.sample_prompts=[秋]", "generation.top_k=2", "data.columns.a=src_txt",
     "output_dir=elsewhere", "trainer.precision=bf16-mixed", "train.save_top_k=2"],
)  # fmt: skip
def test_what_changes_a_run_changes_its_key(rows: Path, argument: str) -> None:
    assert key("finetune", *TUNED, argument) not in (None, key("finetune", *TUNED))


@pytest.mark.parametrize(
    "argument", ["tracking.flush_timeout=1", "trainer.progress_bar=false", "data.cache_dir=there", "dry_run=true"]
)
def test_what_changes_nothing_doesn_t(rows: Path, argument: str) -> None:
    assert key("finetune", *TUNED, argument) == key("finetune", *TUNED)


def test_what_isn_t_given_may_come_from_the_poetry_recipe(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key("finetune", *TUNED)
    monkeypatch.setattr(reuse, "POETRY", reuse.POETRY | {"train.max_epochs": 11})
    assert key("finetune", *TUNED) not in (None, before)


def test_rows_count_by_content_and_not_by_place(rows: Path) -> None:
    before = key("finetune", *TUNED)
    rows.rename(rows.with_name("moved"))
    assert key("finetune", TUNED[0], "data.path=moved") == before
    Path("moved/train.jsonl").write_text('{"src_txt": "秋"}\n', encoding="utf-8")
    assert key("finetune", TUNED[0], "data.path=moved") != before
    assert key("prepare", "source=moved/train.jsonl", "seed=1") == key("prepare", "source=moved/*.jsonl")


def test_rows_behind_a_link_count_too(rows: Path) -> None:
    (rows / "circle").symlink_to(rows)
    more = rows.with_name("more")
    more.mkdir()
    (more / "test.jsonl").write_text("{}", encoding="utf-8")
    (rows / "data").symlink_to(more)
    before = content_of("rows")
    assert "data/test.jsonl" in checksums(rows)
    (more / "test.jsonl").write_text("[]", encoding="utf-8")
    assert content_of("rows") != before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["data.path=owner/a-dataset-of-the-hub"], "data.path=owner/a-dataset-of-the-hub isn't on this machine"),
        (["data.path=rows", "train.allow_changed=[data]"], "it goes on from another training"),
        (["data.path=rows", "train.resume_from=out/checkpoints/last.ckpt"], "it goes on from another training"),
    ],
)
def test_what_may_come_out_otherwise_has_no_key(rows: Path, arguments: list[str], why: str) -> None:
    found, reason = stage_key("finetune", load_config("finetune", [TUNED[0], *arguments]), {"models/poems": "its"})
    assert found is None
    assert reason.startswith(why)


def test_a_model_s_description_is_no_content(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.yaml", "model.safetensors", "run.yaml"):
        (folder / name).write_text(name, encoding="utf-8")
    before = content_of(str(folder), is_model=True)
    (folder / "run.yaml").write_text("of another run", encoding="utf-8")
    (folder / "README.md").write_text("a card", encoding="utf-8")
    assert content_of(str(folder), is_model=True) == before
    (folder / "model.safetensors").write_text("other weights", encoding="utf-8")
    assert content_of(str(folder), is_model=True) != before


def test_the_code_counts_that_a_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    script = MODULES.parent / "pipelines" / "prepare.py"
    behind = {file.relative_to(MODULES).as_posix() for file in code_behind(script) if file.is_relative_to(MODULES)}
    assert "data/corpora/poems.py" in behind
    assert "training/fit.py" not in behind
    before, read = code_digest(script), Path.read_bytes

    def edited(path: Path) -> bytes:
        return read(path) + (b"#" if path.name == "poems.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert code_digest(script) != before


@pytest.mark.parametrize(
    ("library", "stage", "arguments", "changes"),
    [
        ("sacrebleu", "evaluate", ["model=models/poems", "data.path=rows"], True),
        ("scipy", "register", ["model=models/poems", "data.path=rows"], True),
        ("numpy", "evaluate", ["model=models/poems", "data.path=rows"], True),
        ("opencc", "prepare", ["source=rows"], True),
        ("torch", "finetune", TUNED, True),
        ("jieba", "finetune", TUNED, True),
        ("sacrebleu", "finetune", TUNED, False),
        ("sacrebleu", "finetune", [*TUNED, "train.select_by=bleu"], True),
        ("opencc", "finetune", TUNED, False),
        ("mlflow", "finetune", TUNED, False),
        ("mlflow", "evaluate", ["model=models/poems", "data.path=rows"], False),
        ("torch", "prepare", ["source=rows"], False),
    ],
)
def test_a_library_counts_where_the_numbers_depend_on_it(
    rows: Path, monkeypatch: pytest.MonkeyPatch, library: str, stage: str, arguments: list[str], changes: bool
) -> None:
    before = key(stage, *arguments)
    monkeypatch.setattr(f"{stage_key.__module__}.version", lambda name: "0" if name == library else version(name))
    assert before is not None
    assert (key(stage, *arguments) != before) == changes
