from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modules.config.loader import load_config
from modules.config.model import ModelConfig
from modules.config.training import TrainerConfig
from modules.data.packing import plan_steps, split_step
from modules.training.planning.memory_limit import (
    GIB,
    MemoryDemand,
    device_memory,
    largest_micro_batch,
    memory_in_words,
    require_memory,
)
from tests.helpers.models import ROOT

BASE = ModelConfig(vocab_size=16384, hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
HUGE = ModelConfig(vocab_size=51200, hidden_size=12288, num_hidden_layers=96, num_attention_heads=96)
LENGTHS = np.array([512] * 8 + [30] * 1000)


def demand_of(model: ModelConfig = BASE, **trainer: Any) -> MemoryDemand:
    return MemoryDemand(model, TrainerConfig(**trainer), LENGTHS, None, 500_000, 4096)


@pytest.mark.parametrize("batch", [(7, None), (None, 300), (None, 3000)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_no_shuffle_makes_a_dearer_micro_batch(batch: tuple[int | None, int | None], ranks: int) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 120, 400)
    demand = MemoryDemand(BASE, TrainerConfig(devices=ranks), np.sort(lengths)[::-1], *batch, 256)
    bound = largest_micro_batch(demand.lengths, min(demand.largest_share(), 256))
    for _ in range(20):
        for step in plan_steps(lengths, generator.permutation(len(lengths)), *batch):
            ordered = step[np.argsort(lengths[step], kind="stable")]
            for rank in range(ranks):
                share = ordered[rank::ranks]
                assert lengths[share].sum() <= demand.largest_share()
                for group in split_step(share, lengths, 256):
                    assert lengths[group].sum() <= sum(bound)
                    assert (lengths[group] ** 2).sum() <= np.square(bound).sum()


def test_the_dearest_micro_batch_of_a_few_documents() -> None:
    documents = np.array([9, 5, 5, 2])
    assert largest_micro_batch(documents, 4) == [9]  # a document is never cut
    assert largest_micro_batch(documents, 16) == [9, 5, 2]
    assert largest_micro_batch(documents, 99) == [9, 5, 5, 2]
    assert largest_micro_batch(np.array([5, 5, 5]), 10) == [5, 5]
    assert largest_micro_batch(np.array([5, 5, 4]), 10) == [5, 5, 1]  # 5 and 4 may meet: their lengths differ


def test_a_device_has_what_is_said_or_what_is_free() -> None:
    assert device_memory(TrainerConfig(device_memory=1.5)) == 1.5 * GIB
    alone = device_memory(TrainerConfig(accelerator="cpu"))
    assert 0 < device_memory(TrainerConfig(accelerator="cpu", devices=4)) < alone / 2


def refusal(demand: MemoryDemand) -> str:
    with pytest.raises(ValueError, match="a step would need") as caught:
        require_memory(demand)
    return str(caught.value)


@pytest.mark.parametrize(
    ("gib", "keys"),
    [
        (3.0, "train.micro_batch_tokens=2048"),
        (1.9, "train.micro_batch_tokens=512"),
        (1.8, "train.micro_batch_tokens=512 trainer.activation_checkpointing=selective"),
        (1.72, "train.micro_batch_tokens=1024 trainer.activation_checkpointing=full"),
        (1.2, "trainer.precision=bf16-true"),
        (0.3, "trainer.devices=8 trainer.strategy=fsdp trainer.tensor_parallel=4"),
    ],
)
def test_the_least_costly_remedy_is_named(gib: float, keys: str) -> None:
    message = refusal(demand_of(device_memory=gib))
    assert f"has {memory_in_words(gib * GIB)} (trainer.device_memory)" in message
    assert message.endswith(f": {keys}") or (keys.startswith("trainer.") and keys in message)


def test_a_remedy_can_be_pasted_and_is_enough() -> None:
    demand = demand_of(HUGE, device_memory=80)
    keys = refusal(demand).split(": ")[1].split()
    config = load_config("pretrain", ["model=175b", "trainer.device_memory=80", *keys])
    tokens = config.train.micro_batch_tokens or demand.micro_batch_tokens
    changed = replace(demand, trainer=config.trainer, micro_batch_tokens=tokens)
    require_memory(changed)
    assert config.trainer.strategy == "fsdp"
    assert 32 <= config.trainer.devices * config.trainer.nodes <= 256  # 2.8 TB of weights, gradients and moments


def test_processes_on_one_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them on this machine are no remedy; more machines may be."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=15 * GIB * 3 // 2))
    monkeypatch.setattr("modules.training.planning.memory_limit.container_memory", lambda: math.inf)
    said = refusal(demand_of(replace(HUGE, hidden_size=6144, num_hidden_layers=24), accelerator="cpu"))
    keys = dict(re.findall(r"trainer\.(\w+)=(\w+)", said.partition("would do")[2]))
    layout = {name: int(keys[name]) for name in ("devices", "nodes", "tensor_parallel") if name in keys}
    pasted = {"strategy": "fsdp", "activation_checkpointing": keys.get("activation_checkpointing", "none"), **layout}
    demand = demand_of(replace(HUGE, hidden_size=6144, num_hidden_layers=24), accelerator="cpu", **pasted)
    tokens = re.search(r"micro_batch_tokens=(\d+)", said)
    require_memory(replace(demand, micro_batch_tokens=int(tokens[1]) if tokens else demand.micro_batch_tokens))


def test_where_there_is_room_nothing_is_said_and_where_there_is_none_no_keys() -> None:
    require_memory(demand_of(device_memory=80))
    assert not re.search(r"\w=\w", refusal(demand_of(HUGE, device_memory=0.1)))


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_what_an_earlier_run_in_this_process_left_counts_as_free() -> None:
    """As when main trains twice: freed blocks are kept during a run, and would be missed by the next one's check."""
    script = (
        "import psutil, torch\nfrom modules.system.hardware import keep_freed_memory\n"
        "from modules.config.training import TrainerConfig\n"
        "from modules.training.planning.memory_limit import device_memory\n"
        "resident = lambda: psutil.Process().memory_info().rss // 2**20\nkeep_freed_memory()\n"
        "blocks = [torch.ones(2**20) for _ in range(100)]\nkept = torch.ones(2**20)\ndel blocks\n"
        "before = resident()\ndevice_memory(TrainerConfig(accelerator='cpu'))\nprint(before - resident())\n"
    )
    command = [sys.executable, "-c", script]
    given_back = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    assert int(given_back) > 300  # MiB, of 400
