"""How Lightning runs training on one or several devices, in which number format; all write the same checkpoints."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from ..config.training import TrainerConfig
from ..system.hardware import chosen_device
from ..system.signals import is_worker
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
    timeout = timedelta(seconds=group_timeout(config))
    if config.devices * config.nodes == 1:
        return SingleDevice(chosen_device(config.accelerator))
    if config.strategy == "ddp":
        return DataParallel(timeout=timeout, gradient_as_bucket_view=True)
    return ModelParallel(config.data_parallel, config.tensor_parallel, timeout=timeout)


def job_environment() -> ClusterEnvironment | None:
    """How Lightning learns of the other processes where a SLURM job's variables would mislead it; None: by itself."""
    if os.environ.get("LOCAL_RANK") or not SLURMEnvironment.detect():
        return None
    # Under SLURM Lightning would save from within a signal handler, in the middle of a step.
    return SLURMEnvironment(auto_requeue=False) if is_worker() else LightningEnvironment()


def group_timeout(config: TrainerConfig) -> int:
    """Seconds that a rank waits for the others: on GPUs each compiles for itself, some for minutes longer."""
    return config.process_group_timeout or (60 if chosen_device(config.accelerator).type == "cpu" else 600)


class SingleDevice(PortableCheckpoints, SingleDeviceStrategy):
    pass


class DataParallel(PortableCheckpoints, DDPStrategy):
    pass


class ModelParallel(PortableCheckpoints, ModelParallelStrategy):
    pass
