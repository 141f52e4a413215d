"""Checkpoints of training: what they hold, what is taken up from them, and what they are refused for."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from modules.checkpoint.formats import format_of
from modules.checkpoint.loading import open_model
from modules.checkpoint.model_folder import write_architecture
from modules.checkpoint.training_checkpoint import trained_weights
from modules.checkpoint.weights import CheckpointError
from modules.config.loader import load_config
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.checkpoints.resume import given_checkpoint
from modules.training.checkpoints.saving import PROGRESS
from modules.training.fit import fit
from modules.training.optimizer import OPTIMIZERS, SCHEDULES
from pipelines.train import set_up_training
from tests.helpers.layouts import Recorder
from tests.helpers.models import make_config

QUICK = [
    "model.num_hidden_layers=1", "model.hidden_size=16", "model.hidden_dropout_prob=0.1", "data.sequence_length=64",
    "train.batch_size=16", "train.schedule=constant", "train.warmup_steps=1", "train.sample_prompts=[]",
    "trainer.accelerator=cpu", "trainer.progress_bar=false",
]  # fmt: skip


def losses(rows: datasets.Dataset, folder: Path, *arguments: str) -> list[float]:
    config = load_config("pretrain", ["model=tiny", *QUICK, *arguments])
    recorder, given = Recorder(), config.train.resume_from
    start = given_checkpoint(given) if given not in (None, "auto") else None
    fit("pretrain", config, set_up_training(config, rows), folder, recorder, checkpoint=start)  # type: ignore[arg-type]
    return [row["train/loss"] for row in recorder.rows if "train/loss" in row]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows: datasets.Dataset) -> Path:
    """Five steps of a run with dropout, in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("run")
    losses(rows, folder, "train.max_steps=5")
    return folder


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(run, tmp_path / "run") / "checkpoints" / "last.ckpt"


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(rows: datasets.Dataset, run: Path, tmp_path: Path) -> None:
    """Also what dropout draws; over the end of the epoch."""
    whole = losses(rows, tmp_path / "whole", "train.max_steps=25")
    rest = losses(
        rows, tmp_path / "rest", "train.max_steps=25", f"train.resume_from={run / 'checkpoints' / 'last.ckpt'}"
    )
    assert len(whole) == 25
    np.testing.assert_allclose(rest, whole[5:], rtol=1e-6)


KINDS = [(optimizer, "constant") for optimizer in OPTIMIZERS] + [("adamw", schedule) for schedule in SCHEDULES]


@pytest.mark.parametrize(("optimizer", "schedule"), sorted(set(KINDS)))
def test_every_optimizer_and_schedule_goes_on_bit_for_bit(
    optimizer: str, schedule: str, rows: datasets.Dataset, tmp_path: Path
) -> None:
    keys = [f"train.optimizer={optimizer}", f"train.schedule={schedule}", "train.learning_rate=1e-2"]
    keys += ["train.max_steps=6", "train.validate_every_n_steps=3", "train.save_top_k=-1", "train.decay_fraction=0.5"]
    whole = losses(rows, tmp_path / "whole", *keys)
    third = tmp_path / "whole" / "checkpoints" / "step=3.ckpt"
    assert losses(rows, tmp_path / "rest", *keys, f"train.resume_from={third}") == whole[3:]
    first, second = (
        {
            name: tensor.read()
            for name, tensor in trained_weights(tmp_path / run / "checkpoints" / "step=6.ckpt").items()
        }
        for run in ("whole", "rest")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", PROGRESS])
def test_nothing_in_a_checkpoint_is_run(
    file: str, checkpoint: Path, tmp_path: Path, rows: datasets.Dataset, tokenizer: Tokenizer
) -> None:
    canary, path = tmp_path / "canary", checkpoint / file
    if file == "__0_0.distcp":
        hide_payload(checkpoint, canary)
    else:
        path.write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        losses(rows, tmp_path / "again", "train.max_steps=6", f"train.resume_from={checkpoint}")
    if file == ".metadata":
        write_architecture(checkpoint.parent, make_config(tokenizer.vocab_size))
        assert format_of(checkpoint) == "training_checkpoint"
        with pytest.raises(CheckpointError, match=r"\.metadata was not loaded: it holds .*could run code"):
            open_model(checkpoint)
    assert not canary.exists()


def hide_payload(checkpoint: Path, canary: Path) -> None:
    """In place of an entry that isn't a tensor, of the same size."""
    with (checkpoint / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    for index, where in metadata.storage_data.items():
        if index.fqn == "optimizer.param_groups.0.betas" or index.fqn.endswith("weight_decay"):
            path = checkpoint / where.relative_path
            content = bytearray(path.read_bytes())
            payload = pickle.dumps(Payload(canary))
            assert len(payload) <= where.length
            content[where.offset : where.offset + len(payload)] = payload
            path.write_bytes(bytes(content))


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path, rows: datasets.Dataset, tmp_path: Path) -> None:
    arguments = ["train.max_steps=6", f"train.resume_from={checkpoint}", "model.hidden_size=32"]
    with pytest.raises(CheckpointError, match="as a checkpoint of another model or a damaged one"):
        losses(rows, tmp_path / "again", *arguments)


def test_only_a_checkpoint_can_be_resumed(tmp_path: Path, rows: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match="is no checkpoint; give one of a run's checkpoints"):
        losses(rows, tmp_path / "again", "train.max_steps=6", f"train.resume_from={tmp_path}")
