"""What a training run cost: counted, read from counters, or absent."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from modules.config.base import StageConfig
from modules.config.loader import load_config
from modules.data.packing import Position
from modules.tracking.stage_run import stage_run
from modules.tracking.summary import energy
from modules.tracking.summary.energy import EnergyMeter
from modules.tracking.summary.training_facts import lengths_until
from modules.training.planning.flops import step_flops
from pipelines.pretrain import pretrain

ARGUMENTS = [
    "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.hidden_size=16",
    "model.max_position_embeddings=32", "data.sequence_length=16", "train.batch_size=3", "train.max_epochs=null",
    "train.validate_every_n_steps=2", "train.sample_prompts=[]", "tracking.log_system_metrics=false", "output_dir=out",
    "trainer.progress_bar=false", "data.validation_path=null",
]  # fmt: skip
ROWS = {"src_txt": [f"{'春风吹又生' * (n % 3 + 1)}{n}" for n in range(40)]}


def metrics_of(run_id: str) -> dict[str, float]:
    return dict(MlflowClient().get_run(run_id).data.metrics)


def test_a_training_says_what_it_cost_and_adds_to_it_when_it_goes_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", store)  # without counters
    done = pretrain(load_config("pretrain", [*ARGUMENTS, "train.max_steps=2"]), rows=ROWS)
    first = metrics_of(done.run_id)
    steps = done.plan.demand.lengths  # of all documents, longest first
    assert first["cost/parameters"] == done.plan.parameters
    assert first["cost/planned_memory_gib"] == done.plan.demand.memory().peak / 2**30
    assert 0 < first["cost/tokens"] < steps.sum()
    assert first["cost/flops"] > 6 * first["cost/tokens"] * 12 * 16**2
    assert first["cost/seconds"] > 0
    assert not [name for name in first if "energy" in name]
    more = ["train.max_steps=4", "train.allow_changed=[train.max_steps]"]
    manifest = store / "out" / "checkpoints" / "origin.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    again = pretrain(load_config("pretrain", [*ARGUMENTS, *more]), rows=ROWS)
    second = metrics_of(again.run_id)
    assert again.run_id == done.run_id
    assert second["cost/seconds"] > first["cost/seconds"]
    assert second["cost/tokens"] > first["cost/tokens"]


@dataclass
class WithLengths:
    """Documents that have nothing but lengths."""

    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.lengths[numbers]
        return found


def test_tokens_are_those_of_whole_epochs_and_of_the_shuffled_part_of_the_next() -> None:
    lengths = np.array([1, 10, 100, 1000])
    data = SimpleNamespace(documents={"train": WithLengths(lengths)}, bounds={"train": (0, 4)}, seed=3)
    order = np.random.default_rng((3, 2)).permutation(4)
    found = lengths_until(data, Position(9, 2, 3))  # type: ignore[arg-type]
    assert found.sum() == 2 * 1111 + lengths[order[:3]].sum()
    data.bounds = {"train": (0, 1, 4)}  # two sources
    order = np.random.default_rng((3, 1, 1)).permutation(3)
    mixed = lengths_until(data, Position(9, 2, 3, (2, 5)))  # type: ignore[arg-type]
    assert mixed.sum() == 2 * 1 + 1110 + lengths[1 + order[:2]].sum()
    model = {"hidden_size": 2, "num_hidden_layers": 1, "vocab_size": 5}
    assert step_flops(model, np.array([4])) == 4 * (6 * (12 * 4 + 10) + 12 * 2 * 2)


def counter(folder: Path, name: str, microjoules: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("999999999\n")
    return folder / "energy_uj"


def test_processors_energy_is_added_up_where_their_counters_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    package = counter(tmp_path / "intel-rapl:0", "package-0", 900_000_000)
    counter(tmp_path / "intel-rapl:0:0", "core", 5)  # a part of the package
    meter = EnergyMeter(gpus=0)
    package.write_text("100000000\n")  # begun anew after 1,000 J
    meter.read()
    package.write_text("3700000000\n".replace("3700000000", "700000000"))
    assert meter.stop() == {"cost/cpu_energy_wh": pytest.approx((200 + 600) / 3600)}


def test_a_counter_that_may_not_be_read_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    counter(tmp_path / "intel-rapl:0", "package-0", 1).write_text("")
    assert EnergyMeter(gpus=0).stop() == {}


class FakeNvml:
    """Two GPUs, of which CUDA's first is NVML's second."""

    NVMLError = OSError

    def __init__(self) -> None:
        self.millijoules = {"GPU-a": 7_000, "GPU-b": 1_000}
        self.nvmlInit = self.nvmlShutdown = Mock()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:  # noqa: N802
        return ("GPU-a", "GPU-b")[number]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, name: str) -> int:  # noqa: N802
        return self.millijoules[name]

    def nvmlDeviceGetMemoryInfo(self, name: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=4e9 if name == "GPU-a" else 1e9, total=8e9)

    def nvmlDeviceGetUtilizationRates(self, name: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetPowerUsage(self, name: str) -> int:  # noqa: N802
        return 300_000

    def nvmlDeviceGetEnforcedPowerLimit(self, name: str) -> int:  # noqa: N802
        return 400_000


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("mlflow.system_metrics.metrics.gpu_monitor.pynvml", fake)
    return fake


def test_energy_is_that_of_the_gpus_that_were_used(
    nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid="ba"[number]))
    meter = EnergyMeter(gpus=1)
    nvml.millijoules = {"GPU-a": 99_000, "GPU-b": 37_000}
    assert meter.stop() == {"cost/gpu_energy_wh": pytest.approx(36 / 3600)}


def test_a_gpu_without_a_counter_gives_nothing(nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid="a"))
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", Mock(side_effect=OSError("not supported")))
    assert EnergyMeter(gpus=1).stop() == {}


def test_a_run_has_the_metrics_of_each_gpu(nvml: FakeNvml, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with stage_run("prepare", StageConfig()) as run:
        while not any("gpu_1" in name for name in run.spool.metrics()):
            pass
    found = metrics_of(run.info.run_id)
    assert {name: found[f"system/gpu_0_{name}"] for name in (
        "memory_usage_percentage", "memory_usage_megabytes", "utilization_percentage", "power_usage_watts",
        "power_usage_percentage",
    )} == {
        "memory_usage_percentage": 50.0, "memory_usage_megabytes": 4000.0, "utilization_percentage": 90.0,
        "power_usage_watts": 300.0, "power_usage_percentage": 75.0,
    }  # fmt: skip
    assert found["system/gpu_1_memory_usage_percentage"] == 12.5
