"""How Lightning runs training on one or several devices, in which number format; all write the same checkpoints."""

from __future__ import annotations

from datetime import timedelta

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from ..config.training import TrainerConfig
from ..system.hardware import default_device
from .checkpoints.saving import PortableCheckpoints


def require_devices(config: TrainerConfig) -> None:
    """ValueError where this machine has fewer GPUs than are asked for."""
    found = torch.cuda.device_count()
    if config.accelerator == "gpu" and not found:
        raise ValueError("trainer.accelerator=gpu, but there is no GPU that torch can use here; give cpu or auto")
    if config.accelerator != "cpu" and found and config.devices > found:
        raise ValueError(f"trainer.devices={config.devices}, but this machine has {found} (trainer.nodes: machines)")


def make_strategy(config: TrainerConfig) -> Strategy:
    """One device; DDP, where each has the whole model; or FSDP2 with tensor parallelism, where it is spread."""
    timeout = timedelta(seconds=config.process_group_timeout)
    if config.devices * config.nodes == 1:
        return SingleDevice(torch.device("cpu") if config.accelerator == "cpu" else default_device())
    if config.strategy == "ddp":
        return DataParallel(timeout=timeout, gradient_as_bucket_view=True)
    return ModelParallel(config.data_parallel, config.tensor_parallel, timeout=timeout)


class SingleDevice(PortableCheckpoints, SingleDeviceStrategy):
    pass


class DataParallel(PortableCheckpoints, DDPStrategy):
    pass


class ModelParallel(PortableCheckpoints, ModelParallelStrategy):
    pass
