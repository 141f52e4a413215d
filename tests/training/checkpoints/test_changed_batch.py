"""A run that goes on in another batch size: each row of an epoch still comes once, and epochs are counted by rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import datasets
import mlflow
import numpy as np
import pytest
import torch

from modules.config.loader import load_config
from modules.config.training import TrainingConfig
from modules.data.packing import Position
from modules.training.checkpoints.run_manifest import CHECKPOINTS
from modules.training.checkpoints.saving import PROGRESS
from pipelines.train import TrainResult, train
from tests.checkpoint.test_training_checkpoint import QUICK

ROWS, TRAINING = 59, 58
"""All, and those that validation leaves."""


@pytest.fixture
def poems() -> datasets.Dataset:
    """Rows of 3 to 11 tokens."""
    return datasets.Dataset.from_dict({"src_txt": [chr(0x4E00 + n) * (2 + n % 9) for n in range(ROWS)]})


def run(folder: Path, rows: datasets.Dataset, *arguments: str) -> TrainResult:
    keys = ["model=tiny", *QUICK, "trainer.precision=32-true", "data.over_long=split"]
    keys += [] if any(key.startswith("tokenizer.path") for key in arguments) else ["tokenizer.min_frequency=1"]
    config = load_config(
        "pretrain", [*keys, "train.max_steps=null", "train.max_epochs=2", f"output_dir={folder}", *arguments]
    )
    assert isinstance(config, TrainingConfig)
    return train("pretrain", config, {"src_txt": rows["src_txt"]})


def history(result: TrainResult, name: str) -> dict[int, float]:
    return {m.step: m.value for m in mlflow.MlflowClient().get_metric_history(result.run_id, name)}


def branch(
    tmp_path: Path, rows: datasets.Dataset, step: int, *arguments: str, first: tuple[str, ...] = ()
) -> TrainResult:
    """From a checkpoint at `step` of a run with batches of 8 rows, in a run of its own."""
    run(tmp_path / "first", rows, "train.batch_size=8", f"train.max_steps={step}", *first)
    at = tmp_path / "first" / CHECKPOINTS / f"step={step}.ckpt"
    return run(tmp_path / "second", rows, f"train.resume_from={at}", "train.allow_changed=[train,data]", *arguments)


CHANGES = [
    (3, "train.batch_size=3"),
    (8, "train.batch_size=20"),  # an epoch's end
    (11, "train.batch_size=100"),
    (3, "train.batch_size=null", "train.batch_tokens=50"),
    (11, "train.batch_size=null", "train.batch_tokens=12"),
    (3, "train.batch_size=8", "train.micro_batch_tokens=16"),
    (3, "train.batch_size=5", "data.sequence_length=32"),
    (3, "train.batch_size=5", "data.over_long=cut"),
]


@pytest.mark.parametrize(("step", "changes"), [(step, changes) for step, *changes in CHANGES])
def test_every_row_comes_once_an_epoch(
    step: int, changes: list[str], seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path
) -> None:
    result = branch(tmp_path, poems, step, *changes)
    rows = list(itertools.chain(*seen))
    assert sorted(rows[:TRAINING]) == sorted(rows[TRAINING:]) == list(range(TRAINING))
    epochs = history(result, "train/epoch")
    assert sorted(epochs) == list(range(step + 1, len(seen) + 1))
    done = np.cumsum([len(documents) for documents in seen])
    assert list(epochs.values()) == pytest.approx([done[step] / TRAINING for step in range(step, len(seen))])
    assert epochs[len(seen)] == 2
    assert result.plan.total_steps == len(seen)
    assert result.plan.epochs == pytest.approx(2, abs=0.2)
    ends = {n + 1 for n, value in enumerate(done) if value % TRAINING == 0 and n + 1 >= step}
    assert set(history(result, "val/loss")) - {step} == ends - {step}  # once an epoch, at its end


def test_another_change_begins_where_the_last_batch_size_ended(
    seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path
) -> None:
    """Three batch sizes in one epoch, and a resumption without a change between them."""
    sizes = [(8, 2), (3, 5), (3, 6), (11, 7), (8, 30)]
    for number, (size, steps) in enumerate(sizes):
        start = f"train.resume_from={tmp_path}/{number - 1}/{CHECKPOINTS}/last.ckpt" if number else "seed=42"
        keys = f"train.batch_size={size}", f"train.max_steps={steps}", "train.allow_changed=[train]"
        run(tmp_path / str(number), poems, start, *keys)
    assert [len(step) for step in seen[:8]] == [8, 8, 3, 3, 3, 3, 11, 8]
    rows = list(itertools.chain(*seen))
    assert sorted(rows[:TRAINING]) == sorted(rows[TRAINING:]) == list(range(TRAINING))


def test_an_unchanged_run_takes_the_same_steps(seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path) -> None:
    """Counted in tokens too, where steps aren't counted from the checkpoint but from the epoch's beginning."""
    keys = "train.batch_size=null", "train.batch_tokens=50", "train.save_every_n_steps=4", "train.save_top_k=-1"
    whole = run(tmp_path / "whole", poems, *keys)
    steps, losses = list(seen), history(whole, "train/loss")
    seen.clear()
    rest = run(tmp_path / "rest", poems, *keys, f"train.resume_from={tmp_path}/whole/{CHECKPOINTS}/step=4.ckpt")
    assert seen == steps[4:]
    assert history(rest, "train/loss") == {step: loss for step, loss in losses.items() if step > 4}


def test_the_schedule_ends_with_the_last_step(seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path) -> None:
    keys = "train.schedule=cosine", "train.learning_rate=1", "train.min_learning_rate_ratio=0.25"
    result = branch(tmp_path, poems, 3, *keys, "train.batch_size=3", first=keys)
    assert result.plan.epochs == pytest.approx(2)
    rates = history(result, "lr")
    assert max(rates) == len(seen)
    assert rates[len(seen)] == pytest.approx(0.25)
    assert rates[len(seen) - 1] > 0.25


def test_steps_asked_for_are_steps(seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path) -> None:
    asked = "train.max_steps=13", "train.validate_every_n_steps=5", "train.save_every_n_steps=4", "train.save_top_k=-1"
    result = branch(tmp_path, poems, 3, "train.batch_size=4", *asked)
    assert len(seen) == 13
    assert set(history(result, "val/loss")) == {5, 10, 13}
    found = {int(path.stem.partition("=")[2]) for path in (tmp_path / "second" / CHECKPOINTS).glob("step=*.ckpt")}
    assert found == {4, 5, 8, 10, 12, 13}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("data.sequence_length=4",),
            r"the same rows made 58 documents, and make 121 \(data\.sequence_length, data\.over_",
        ),
        (("seed=1", "data.validation_path=null"), "the rows for train and validation are others"),
    ],
)
def test_what_would_cut_an_epochs_rows_otherwise_is_refused(
    changes: tuple[str, ...], message: str, seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        branch(
            tmp_path, poems, 3, "train.batch_size=8", *changes, "train.allow_changed=[train,data.sequence_length,seed]"
        )
    assert len(seen) == 3


def test_at_an_epochs_end_rows_may_be_cut_otherwise(
    seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path
) -> None:
    result = branch(tmp_path, poems, 8, "train.batch_size=8", "data.sequence_length=4")
    again = list(itertools.chain(*seen[8:]))
    assert sorted(again) == list(range(len(again)))
    assert history(result, "train/epoch")[len(seen)] == 2


def test_with_other_rows_the_epoch_begins_again(
    seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "first", poems, "train.batch_size=8", "train.max_steps=3")
    at = f"train.resume_from={tmp_path}/first/{CHECKPOINTS}/step=3.ckpt"
    more = datasets.Dataset.from_dict({"src_txt": poems["src_txt"][:] + ["一二三四"] * 20})
    vocabulary = f"tokenizer.path={tmp_path}/first/{CHECKPOINTS}"
    run(tmp_path / "second", more, at, vocabulary, "train.batch_size=8", "train.allow_changed=[train,data]")
    assert "1, from its beginning, as the rows are others" in capsys.readouterr().out
    again = list(itertools.chain(*seen[3:]))
    assert sorted(again[: len(again) // 2]) == sorted(again[len(again) // 2 :]) == list(range(len(again) // 2))


def test_a_checkpoint_that_says_nothing_of_its_rows_goes_on_unchanged(
    seen: list[list[int]], poems: datasets.Dataset, tmp_path: Path
) -> None:
    """As an older moyun wrote it."""
    from modules.system.checksums import describe_files, write_file_list

    run(tmp_path / "first", poems, "train.batch_size=8", "train.max_steps=3")
    path = tmp_path / "first" / CHECKPOINTS / "step=3.ckpt"
    progress = torch.load(path / PROGRESS, weights_only=True)
    assert Position(**progress.pop("progress")["place"]) == Position(3, 0, 24)
    torch.save(progress, path / PROGRESS)
    write_file_list(path, describe_files([file for file in path.iterdir() if file.name != "files.json"]))
    keys = f"train.resume_from={path}", "train.allow_changed=[train]"
    with pytest.raises(ValueError, match=r"is of an older moyun and doesn't say .* so train\.batch_size can't change"):
        run(tmp_path / "changed", poems, "train.batch_size=4", *keys)
    run(tmp_path / "second", poems, "train.batch_size=8", *keys)
    rows = list(itertools.chain(*seen))
    assert sorted(rows[:TRAINING]) == sorted(rows[TRAINING:]) == list(range(TRAINING))
