"""Training checkpoints are written and loaded here, for any layout of devices; modules/checkpoint opens one as a model.

Every layout writes the same thing: a folder in PyTorch's distributed checkpoint format (DCP), weights and optimizer
state by parameter name, each rank its own part; beside it what Lightning's callbacks keep. Reading cuts it anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pytorch_lightning.strategies import Strategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ...checkpoint.pickles import load, write_stream
from ...checkpoint.training_checkpoint import load_state, raise_if_stopped, reasons_of
from ...checkpoint.weights import CheckpointError
from ...system.atomic import (
    disk_full,
    draft_of,
    error_of_the_machine,
    flush_to_disk,
    publish_folder,
    remove_abandoned,
)
from ...system.checksums import Described, describe_files, write_file_list

PROGRESS = "progress.pt"
"""What a checkpoint holds beside tensors: the step, validations, callbacks, schedule."""


FILES_TO_TENSORS, FILES_BESIDE = 1.05, 2**18
"""What a checkpoint takes on disk: the tensors' bytes and a share, and bytes of the rest."""


class PortableCheckpoints(Strategy):
    """The part of a Lightning strategy that saves and loads: one format for all of strategies.py."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True  # DCP fills tensors that are there already, laid out as they will be used

    @property
    def lightning_restore_optimizer(self) -> bool:
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Without frozen weights: they are those of the model folder that training starts from."""
        return get_model_state_dict(self.bare_module, options=StateDictOptions(ignore_frozen_params=True))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return get_optimizer_state_dict(self.bare_module, optimizer)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """load_checkpoint has done it."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """load_checkpoint has done it."""

    @property
    def bare_module(self) -> torch.nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank writes its part into a draft folder, which takes its name when all of it is on disk."""
        path = Path(self.broadcast(str(filepath)))
        draft = Path(self.broadcast(str(draft_of(path))))  # that of the first rank
        if self.is_global_zero:
            remove_abandoned(path.parent)
            shutil.rmtree(draft, ignore_errors=True)
        self.barrier()
        del checkpoint["loops"]  # Lightning's own way to go on; loop_counters.count_on has ours
        state = {"model": checkpoint.pop("state_dict"), "optimizer": checkpoint.pop("optimizer_states", [{}])[0]}
        try:
            dcp.save(state, checkpoint_id=draft, no_dist=not dist.is_initialized())
            if self.is_global_zero:
                write_stream(draft / PROGRESS, checkpoint)
            files = self.described(draft)
            if self.is_global_zero:
                write_file_list(draft, files)
                publish_folder(draft, path, replace=True)
        except (OSError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise_if_stopped(error)
            needed = int(size_of(state) * FILES_TO_TENSORS) + FILES_BESIDE
            reason = disk_full(path.parent, "the checkpoint", needed) or reason_of(error)
            raise ValueError(
                f"the checkpoint {path} could not be written: {reason}; earlier ones are as they were. When "
                "there is room and the right to write, the same command goes on from the last of them"
            ) from error
        self.barrier()

    def described(self, draft: Path) -> Described:
        """Each rank hashes and flushes its own files: if the first did it for all, it would be taken for dead."""
        mine = f"__{dist.get_rank() if dist.is_initialized() else 0}_"
        rest = self.is_global_zero
        files = [p for p in draft.iterdir() if p.name.startswith(mine) or (rest and not p.name.startswith("__"))]
        for path in files:
            flush_to_disk(path)
        found: list[Described | None] = [describe_files(files)]
        if dist.is_initialized():
            found = [None] * dist.get_world_size()
            dist.all_gather_object(found, describe_files(files))
        return {name: facts for part in found if part for name, facts in part.items()}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        self.load_weights(path)
        for optimizer in self.optimizers:
            state = {"optimizer": get_optimizer_state_dict(self.bare_module, optimizer)}
            load_state(state, path, no_dist=not dist.is_initialized())
            set_optimizer_state_dict(self.bare_module, optimizer, state["optimizer"])
        return read_progress(path)

    def load_weights(self, path: Path) -> None:
        state = {"model": self.lightning_module_state_dict()}
        load_state(state, path, no_dist=not dist.is_initialized())
        set_model_state_dict(self.bare_module, state["model"], options=StateDictOptions(strict=False))


def reason_of(error: BaseException) -> str:
    """The operating system's word, if it is behind what DCP makes of it."""
    error = next(iter(reasons_of(error)), error)
    found = error_of_the_machine(error)
    return (found.strerror if found else None) or str(error).partition("\n")[0]


def size_of(state: Any) -> int:
    """Bytes of the tensors in nested mappings, of all ranks."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, parts))


def read_progress(path: Path) -> dict[str, Any]:
    """A checkpoint's global_step, validations, callbacks and schedule; CheckpointError for anything else there."""
    progress = load(path / PROGRESS)
    if not isinstance(progress, dict) or not isinstance(progress.get("global_step"), int):
        raise CheckpointError(f"{path / PROGRESS} says nothing of a training's step; take another checkpoint")
    return progress
