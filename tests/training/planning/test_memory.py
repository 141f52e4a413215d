from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure_memory import BASE, BASE_CASES, SHORT, TINY, TINY_CASES, Case, estimated, measured
from modules.config.model import ModelConfig
from modules.config.training import TrainConfig, TrainerConfig
from modules.model.decoder import Decoder, meta_decoder
from modules.training.optimizer import OPTIMIZERS, make_optimizer
from modules.training.planning.memory import StepMemory, TrainingMemory


@pytest.mark.parametrize("case", TINY_CASES, ids=str)
def test_the_estimate_is_what_a_tiny_step_takes(case: Case) -> None:
    assert estimated(case) == pytest.approx(measured(case), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", BASE_CASES, ids=str)
def test_the_estimate_is_what_a_base_step_takes(case: Case) -> None:
    assert estimated(case) == pytest.approx(measured(case), rel=0.1)


def memory_of(shape: dict[str, Any] = BASE, lengths: Any = SHORT, **trainer: Any) -> TrainingMemory:
    keys = {name: trainer.pop(name) for name in ("adapter_parameters", "optimizer") if name in trainer}
    return StepMemory(ModelConfig(vocab_size=16384, **shape), TrainerConfig(**trainer), lengths, **keys).memory()


@pytest.mark.parametrize("shape", [TINY, BASE], ids=["tiny", "base"])
def test_weights_gradients_and_moments_follow_the_number_format(shape: dict[str, Any]) -> None:
    parameters = sum(p.numel() for p in meta_decoder(ModelConfig(vocab_size=16384, **shape)).parameters())
    for precision, size in (("32-true", 4), ("bf16-mixed", 4), ("bf16-true", 2)):
        memory = memory_of(shape, precision=precision)
        assert memory.weights == memory.gradients == size * parameters
        assert memory.optimizer == 2 * size * parameters


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_plans_state_is_what_the_optimizer_keeps(optimizer: Any, precision: str) -> None:
    """Beside a step counter of 4 bytes a parameter."""
    decoder = Decoder(ModelConfig(vocab_size=16384, **TINY))
    if precision == "bf16-true":
        decoder.bfloat16()
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    built = make_optimizer(decoder.named_parameters(), TrainConfig(optimizer=optimizer), 1e-3)
    built.step()
    tensors = [tensor for state in built.state.values() for tensor in state.values() if tensor.dim()]
    assert memory_of(TINY, precision=precision, optimizer=optimizer).optimizer == sum(t.nbytes for t in tensors)


def test_muon_keeps_one_momentum_of_adapters_and_of_each_devices_matrices() -> None:
    assert memory_of(adapter_parameters=1_000_000, optimizer="muon").optimizer == 4_000_000
    cut = memory_of(devices=4, strategy="fsdp", tensor_parallel=4, optimizer="muon")
    saved = 4 * 12 * 12 * 768**2 / 4  # the second moment of a device's part of twelve layers' matrices
    assert cut.optimizer == memory_of(devices=4, strategy="fsdp", tensor_parallel=4).optimizer - saved


def test_ddp_keeps_everything_on_each_device_and_fsdp_a_share() -> None:
    alone, ddp = memory_of(), memory_of(devices=4)
    fsdp = memory_of(devices=4, strategy="fsdp")
    assert ddp == alone
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(fsdp, part) == pytest.approx(getattr(alone, part) / 4)
    assert fsdp.activations == alone.activations
    layer = 12 * 768**2 + 13 * 768
    root = (16384 + 2048 + 2) * 768
    assert fsdp.temporary - alone.temporary == pytest.approx(4 * (root + 3 * layer), rel=1e-6)


def test_fsdp_in_mixed_precision_computes_all_of_it_in_bf16() -> None:
    """Gathered in bf16: no copies by autocast, and the residual stream is bf16 as in bf16-true."""
    layout = {"devices": 4, "strategy": "fsdp"}
    mixed, pure = memory_of(precision="bf16-mixed", **layout), memory_of(precision="bf16-true", **layout)
    assert (mixed.activations, mixed.temporary) == (pure.activations, pure.temporary)
    assert mixed.weights == 2 * pure.weights


def test_tensor_parallel_cuts_matrices_and_what_lies_inside_layers() -> None:
    whole = memory_of(devices=4, strategy="fsdp")
    cut = memory_of(devices=4, strategy="fsdp", tensor_parallel=4)
    replicated = (2048 + 2) * 768 + 12 * 6 * 768  # positions, LayerNorms, biases of row-parallel layers
    assert cut.weights == pytest.approx(whole.weights + 4 * replicated * 3 / 4)
    assert whole.activations / 4 < cut.activations < whole.activations / 1.5
    assert cut.peak < memory_of().peak / 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_adapters_alone_have_gradients_and_moments(precision: str) -> None:
    everything = memory_of(precision=precision)
    adapters = memory_of(precision=precision, adapter_parameters=1_000_000)
    assert adapters.weights == everything.weights + 4_000_000
    assert (adapters.gradients, adapters.optimizer) == (4_000_000, 8_000_000)
    assert adapters.peak < everything.peak - 0.8 * (everything.gradients + everything.optimizer)
