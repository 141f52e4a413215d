"""What training chooses on a GPU, shown without one: torch says that there is one, and nothing is computed on it."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger

from modules.config.data import DataConfig
from modules.config.model import ModelConfig
from modules.config.training import TrainConfig, TrainerConfig, TrainingConfig
from modules.data.datamodule import TextDataModule
from modules.data.packing import StepBatch, StepDataset
from modules.data.prefetching import Prefetched
from modules.model.decoder import build_decoder, meta_decoder
from modules.system.hardware import default_device, gpu_peak, grow_gpu_memory_in_place
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.lightning_module import LanguageModel
from modules.training.planning.flops import flops_per_token, step_flops
from modules.training.planning.memory_limit import GIB, GPU_SHARE, MemoryDemand, device_memory, fitting_tokens
from modules.training.planning.plan import make_plan
from modules.training.strategies import group_timeout, make_strategy
from modules.training.utilization import Utilization
from tests.helpers.models import make_config

LARGE = ModelConfig(vocab_size=21128, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
CARD = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, int]:
    """torch and Lightning find an H100; free bytes of each device that is asked about."""
    memory = {torch.device("cuda", 0): 79 * GIB}
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: CARD)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (memory[device], 80 * GIB))
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("cuda"))
    for module in ("lightning_fabric.accelerators.cuda", "pytorch_lightning.accelerators.cuda"):
        monkeypatch.setattr(f"{module}.num_cuda_devices", lambda: 1)
    monkeypatch.setattr("lightning_fabric.accelerators.cuda._get_all_visible_cuda_devices", lambda: [0])
    return memory


def demand_of(lengths: np.ndarray, batch_tokens: int, **trainer: Any) -> MemoryDemand:
    return MemoryDemand(LARGE, TrainerConfig(**trainer), lengths, None, batch_tokens, 1)


def test_lightning_takes_the_gpu_by_its_number(free: object, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch._C._cuda_setDevice", taken.append, raising=False)
    strategy = make_strategy(TrainerConfig(accelerator="gpu"))
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, strategy=strategy, logger=False, barebones=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.strategy.setup_environment()
    assert taken == [0]
    assert make_strategy(TrainerConfig(accelerator="cpu")).root_device == torch.device("cpu")


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    name: str, free: dict[torch.device, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    assert default_device() == torch.device("cuda", 0)  # SLURM may show each process its own alone
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    free[torch.device("cuda", 3)] = 10 * GIB
    assert default_device() == torch.device("cuda", 3)
    assert device_memory(TrainerConfig()) == int(10 * GIB * GPU_SHARE)


def test_a_pass_takes_the_whole_step_where_that_fits(free: object) -> None:
    tokens, why = fitting_tokens(demand_of(np.full(500, 60), 6000, precision="bf16-mixed"))
    step = demand_of(np.full(500, 60), 6000).largest_share()
    assert step <= tokens < step + 1024
    assert tokens % 1024 == 0
    assert why == "the whole step"


def test_a_pass_takes_what_fits(free: dict[torch.device, int]) -> None:
    demand = demand_of(np.full(2000, 2048), 500_000, precision="bf16-mixed")
    assert fitting_tokens(demand) == (65_536, "enough to keep a GPU busy")
    free[torch.device("cuda", 0)] = 24 * GIB
    tokens, why = fitting_tokens(demand)
    assert why == "what fits into 22.08 GiB"
    limit = device_memory(demand.trainer)
    assert replace(demand, micro_batch_tokens=tokens).memory().peak <= limit
    assert replace(demand, micro_batch_tokens=2 * tokens).memory().peak > limit
    free[torch.device("cuda", 0)] = GIB
    assert fitting_tokens(demand)[1] == "more don't fit"


def test_a_cpu_takes_2048(free: object) -> None:
    assert fitting_tokens(demand_of(np.full(500, 60), 6000, accelerator="cpu"))[0] == 2048


def test_gpus_wait_longer_for_each_other(free: object) -> None:
    assert group_timeout(TrainerConfig()) == 600
    assert group_timeout(TrainerConfig(accelerator="cpu")) == 60
    assert group_timeout(TrainerConfig(process_group_timeout=7)) == 7


def test_a_cards_peak_is_known_by_its_name() -> None:
    assert gpu_peak(CARD) == 989e12
    assert gpu_peak("NVIDIA H100 PCIe") is None
    assert gpu_peak("NVIDIA GeForce GT 710") is None


def test_a_steps_operations_are_those_of_its_documents() -> None:
    model = {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 50}
    alone = sum(length * flops_per_token(model, length / 2) for length in (3, 5, 5))
    assert step_flops(model, np.array([3, 5, 5])) == pytest.approx(alone)


class Logged(Logger):
    name = version = "logged"

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def data(tokenizer: Tokenizer, rows: datasets.Dataset) -> TextDataModule:
    splits = {"train": rows, "validation": rows.select(range(10))}
    return TextDataModule(splits, tokenizer, DataConfig(sequence_length=96, over_long="split"), batch_size=16)


@pytest.mark.parametrize("adapters", [False, True])
def test_each_step_logs_utilization_and_peak_memory(
    adapters: bool, data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: CARD)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 3 * GIB)
    model, (step, *_) = make_config(data.tokenizer.vocab_size), data.train_dataloader()
    module = LanguageModel(build_decoder(model, 0), TrainConfig(max_steps=1), learning_rate=1e-3, total_steps=1)
    pl.Trainer(
        max_steps=1, accelerator="cpu", logger=(logged := Logged()), enable_progress_bar=False,
        callbacks=Utilization(model, TrainerConfig(), adapters), enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0, default_root_dir=tmp_path,
    ).fit(module, data)  # fmt: skip
    assert logged.metrics["train/peak_memory_gib"] == 3
    assert ("train/mfu" in logged.metrics) is not adapters
    if not adapters:
        numbers = [number for batch in step.micro_batches for number in batch.documents]
        lengths = data.documents["train"].lengths[numbers]
        seconds = step.trained_tokens / logged.metrics["train/tokens_per_second"]
        assert logged.metrics["train/mfu"] == pytest.approx(step_flops(vars(model), lengths) / seconds / 989e12)


def test_steps_are_laid_out_ahead_by_a_thread(data: TextDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a GPU: here it is noted instead."""
    laid_out: list[tuple[int, threading.Thread]] = []
    make = StepDataset.__getitem__

    def noted(self: StepDataset, index: int) -> StepBatch:
        laid_out.append((index, threading.current_thread()))
        return make(self, index)

    monkeypatch.setattr(StepDataset, "__getitem__", noted)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    expected = list(data.train_dataloader())
    laid_out.clear()
    prefetched = Prefetched(data.train_dataloader())  # type: ignore[arg-type]
    steps = iter(prefetched)
    first = next(steps)
    found = [first, *steps]
    assert len(prefetched) == len(found) == len(expected) > 2
    for step, other in zip(found, expected, strict=True):
        assert step.trained_tokens == other.trained_tokens
        for batch, same in zip(step.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(batch.input_ids, same.input_ids)
            assert torch.equal(batch.labels, same.labels)
            assert batch.documents.tolist() == same.documents.tolist()
    assert [index for index, _ in laid_out] == list(range(len(expected)))
    assert threading.main_thread() not in {thread for _, thread in laid_out}


def test_on_a_gpu_weights_are_laid_out_and_steps_prefetched(
    data: TextDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning has it when it calls: the module itself is still on the CPU."""
    root = torch.device("cuda", 1)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=root), distributed_sampler_kwargs=None)
    trainer.global_step, trainer.max_steps = 0, 3
    places: list[torch.device] = []
    monkeypatch.setattr("modules.training.lightning_module.allocate", lambda decoder, device: places.append(device))
    monkeypatch.setattr("modules.training.lightning_module.fill", lambda *_: None)
    decoder = meta_decoder(make_config(data.tokenizer.vocab_size))
    module = LanguageModel(decoder, TrainConfig(max_steps=1), learning_rate=1e-3, total_steps=1)
    module._trainer = trainer
    module.configure_model()
    assert places == [root]
    data.trainer = trainer
    assert isinstance(loader := data.train_dataloader(), Prefetched)
    assert isinstance(data.val_dataloader(), Prefetched)
    assert len(loader) == 3


def test_what_fails_in_the_thread_fails_in_training(data: TextDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the thread ends."""

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("no page-locked memory is left")

    monkeypatch.setattr(torch.Tensor, "pin_memory", full)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no page-locked"):
        next(iter(Prefetched(data.train_dataloader())))  # type: ignore[arg-type]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"}, "garbage_collection_threshold:0.8"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, None),
    ],
)
def test_the_allocator_is_set_up_unless_the_user_has(
    given: dict[str, str], then: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    grow_gpu_memory_in_place()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == then
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is put back


def test_a_run_that_is_gone_on_with_keeps_its_passes(free: object, data: TextDataModule) -> None:
    """Whatever is free by then: other passes would add up in another order. Older runs have 2048 in their manifest."""
    config = TrainingConfig(train=TrainConfig(max_steps=1, learning_rate=1e-3, batch_tokens=4096))
    model = make_config(data.tokenizer.vocab_size)
    data.batch_size, data.batch_tokens = None, 4096
    plans = {tokens: make_plan(config, model, data, tokens) for tokens in (None, 512)}
    assert plans[512].demand.micro_batch_tokens == 512
    assert plans[512].describe()["tokens a pass"] == "at most 512 (as in the run that is gone on with)"
    assert plans[None].demand.micro_batch_tokens > 4096
    config.train.micro_batch_tokens = 1024
    assert make_plan(config, model, data, 512).demand.micro_batch_tokens == 1024
