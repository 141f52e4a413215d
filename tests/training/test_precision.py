"""Number formats and the memory check, through the whole of training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from modules.checkpoint.adapter import read_adapter
from modules.checkpoint.loading import load_model
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.model.sampling import generate
from modules.system.hardware import bf16_speedup
from modules.training.fit import make_module
from pipelines.train import TrainResult, set_up_training, train

SMALL = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"]


def run(store: Path, rows: datasets.Dataset, stage: str, *arguments: str) -> TrainResult:
    common = ["train.max_steps=3", "train.max_epochs=null", "train.warmup_steps=1", "data.sequence_length=64"]
    common += ["trainer.progress_bar=false", "train.sample_prompts=[]", "tracking.log_system_metrics=false"]
    return train(stage, load_config(stage, [*common, *arguments]), rows)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_trains_and_generates(store: Path, rows: datasets.Dataset, precision: str) -> None:
    few = rows.select(range(20))
    plain = run(store, few, "pretrain", *SMALL, "output_dir=plain")
    found = run(store, few, "pretrain", *SMALL, "output_dir=found", f"trainer.precision={precision}")
    assert plain.metrics
    assert found.metrics
    assert found.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], abs=0.02)
    decoder = load_model(found.model or "")
    assert next(decoder.parameters()).dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    tokens = list(generate(decoder, [[5, 6]], GenerationConfig(temperature=0.0, max_new_tokens=4), -1))
    assert len(tokens) >= 4
    tuned = run(
        store, few, "finetune", f"train.init_from={found.model}", "train.learning_rate=1e-3", "output_dir=tuned",
        "trainer.activation_checkpointing=full",
    )  # fmt: skip
    assert (
        next(load_model(tuned.model or "").parameters()).dtype == torch.float32
    )  # trainer.precision's, not the start's


@pytest.mark.parametrize(("speedup", "expected"), [(2.0, "bf16-mixed"), (1.1, "32-true"), (0.03, "32-true")])
def test_auto_is_bfloat16_where_that_is_faster(
    speedup: float, expected: str, store: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.training.precision.bf16_speedup", lambda on_gpu: speedup)
    plan = run(store, rows.select(range(20)), "pretrain", *SMALL, "dry_run=true").plan
    assert plan.demand.trainer.precision == expected
    said = f"{expected} (matrix products in bfloat16 are {speedup:.1f} times as fast as in float32 here)"
    assert plan.describe()["number format"] == said
    given = run(store, rows.select(range(20)), "pretrain", *SMALL, "dry_run=true", "trainer.precision=bf16-true").plan
    assert given.describe()["number format"].startswith("bf16-true (")


def test_the_number_formats_are_tried_on_this_machine() -> None:
    assert 0 < bf16_speedup() < 100


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_goes_on_in_its_own_number_format_to_the_last_bit(
    precision: str, store: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where auto would choose the other one by now: the second half runs on another machine."""
    few = rows.select(range(40))
    common = [*SMALL, "train.schedule=constant", "train.batch_size=8", "train.validate_every_n_steps=2"]
    settled = f"trainer.precision={precision}"
    whole = run(store, few, "pretrain", *common, settled, "train.max_steps=4", "output_dir=whole").model
    run(store, few, "pretrain", *common, settled, "train.max_steps=2", "output_dir=half")
    monkeypatch.setattr(
        "modules.training.precision.bf16_speedup", lambda on_gpu: 2.0 if precision == "32-true" else 0.5
    )
    more = [
        "train.max_steps=4",
        "train.resume_from=half/checkpoints/step=2.ckpt",
        "train.allow_changed=[train.max_steps]",
    ]
    on = run(store, few, "pretrain", *common, *more, "output_dir=on").model
    assert whole
    assert on
    found, expected = weights_of(on), weights_of(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_bfloat16_is_laid_out_as_such_and_adapters_stay_float32(store: Path, rows: datasets.Dataset) -> None:
    """Float32 on the way to bf16 would need twice the plan's memory; small updates would vanish in bf16's 8 bits."""
    few = rows.select(range(20))
    start = run(store, few, "pretrain", *SMALL, "output_dir=start").model
    lora = [f"train.init_from={start}", "lora.rank=2", "trainer.precision=bf16-true", "data.sequence_length=64"]
    config = load_config("finetune", lora)
    module = make_module(config, set_up_training(config, few))
    for name, parameter in module.decoder.named_parameters():
        assert parameter.is_meta
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    tuned = run(store, few, "finetune", *lora, "output_dir=tuned")
    assert tuned.metrics
    assert {tensor.dtype for tensor in read_adapter(store / "tuned" / "adapter").tensors.values()} == {torch.float32}


def test_a_dry_run_of_the_largest_size_takes_no_memory(store: Path, rows: datasets.Dataset) -> None:
    started = time.monotonic()
    arguments = ["model=175b", "dry_run=true", "trainer.devices=8", "trainer.nodes=16", "trainer.strategy=fsdp"]
    fits = ["trainer.device_memory=80", "train.micro_batch_tokens=512"]
    plan = run(store, rows.select(range(20)), "pretrain", *arguments, *fits).plan
    assert plan.parameters > 173e9
    assert plan.demand.memory().weights == pytest.approx(4 * plan.parameters / 128)
    assert time.monotonic() - started < 60
    with pytest.raises(ValueError, match="This would do, at .* GiB: "):
        run(store, rows.select(range(20)), "pretrain", "model=175b", "dry_run=true", "trainer.device_memory=80")


def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    store: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    start = run(store, rows.select(range(20)), "pretrain", *SMALL, "output_dir=start").model
    monkeypatch.setattr("modules.training.fit.first_tensors", refuse)
    arguments = [f"train.init_from={start}", "trainer.device_memory=0.001", "output_dir=never"]
    with pytest.raises(ValueError, match="a step would need"):
        run(store, rows.select(range(20)), "finetune", *arguments)
