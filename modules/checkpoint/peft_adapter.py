"""Adapters in PEFT's layout, for the Hugging Face export of the model that they belong to, in and out.

adapter_config.json             rank, alpha, target modules by GPT-2's names
adapter_model.safetensors       lora_A (rank, in) and lora_B (out, rank) of each; c_attn's rows in three blocks, as ours
adapter.yaml                    of moyun's alone: what PEFT has no place for (adapter.py)

Source: peft 0.18, tuners/lora/config.py and utils/save_and_load.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.base import ConfigError
from ..config.loader import validate
from ..config.model import LoraConfig
from ..system.atomic import write_json
from ..system.bounded_read import read_json_object
from .formats.architecture import MATRICES, renamed
from .formats.huggingface import NAMES
from .weights import CheckpointError, StoredTensor, StoredWeights, read_safetensors, save_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

THEIRS = {name: renamed(name, NAMES) for name in MATRICES}
"""A layer's matrix by our name → by GPT-2's."""
OURS = {theirs: name for name, theirs in THEIRS.items()}

TENSOR = re.compile(r"base_model\.model\.(?:transformer\.)?h\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")

SAYS_NOTHING = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core", "eva_config"),
    *("runtime_config", "loftq_config", "qalora_group_size"),
}
"""Keys of adapter_config.json that are read, or that the tensors tell, or that matter in training alone."""

STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""init_lora_weights that leave the base's own weights as they are."""


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_peft(folder: Path) -> tuple[LoraConfig, StoredWeights]:
    """Rank, alpha and targets, and the tensors by the decoder's names, as in adapter.safetensors.

    Raises CheckpointError for what is missing, damaged, or more than plain LoRA of the layers' matrices.
    """
    path = folder / CONFIG
    options = read_json_object(path)
    if complaints := not_supported(options):
        raise CheckpointError(f"{path}: {'; '.join(complaints)}; moyun reads plain LoRA of a layer's matrices alone")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS} is missing; copy it from where the adapter came from")
    tensors = {our_name(folder, name): tensor for name, tensor in read_safetensors(folder / WEIGHTS).items()}
    rank, alpha = options.get("r"), options.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r and lora_alpha must be numbers, not {rank!r} and {alpha!r}; copy it again")
    scale = math.sqrt(max(rank, 0)) if options.get("use_rslora") else 1.0
    targets = sorted({name.split(".", 3)[3].rpartition(".")[0] for name in tensors})
    found = LoraConfig(rank, alpha * scale, 0.0, [short_name(target) for target in targets])
    try:
        validate(found)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {'; '.join(error.complaints)}") from error
    return found, tensors


def not_supported(options: Mapping[str, Any]) -> list[str]:
    """What in an adapter_config.json changes what the adapter computes, beyond what moyun's adapters can."""
    found = [] if options.get("peft_type") == "LORA" else [f"peft_type={options.get('peft_type')} is not supported"]
    for name, value in options.items():
        if name not in SAYS_NOTHING and value and (name, value) != ("bias", "none"):
            found.append(f"{name}={value} is not supported")
    if (start := options.get("init_lora_weights", True)) not in STARTS:
        found.append(f"init_lora_weights={start} is not supported, as it changes the base's own weights too")
    return found


def our_name(folder: Path, name: str) -> str:
    match = TENSOR.fullmatch(name)
    if match is None or match[2] not in OURS:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {name} is no adapter of a layer's matrix; moyun adapts {', '.join(OURS)}"
        )
    return f"transformer.layers.{match[1]}.{OURS[match[2]]}.lora_{match[3].lower()}"


def short_name(matrix: str) -> str:
    """As LoraConfig has it: attention.query_key_value → query_key_value."""
    return matrix.rpartition(".")[2]


def write_peft(folder: Path, config: LoraConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Writes the two files of PEFT's into an empty folder. tensors: by our names, as in adapter.safetensors."""
    renamed_tensors = {their_name(name): tensor.read() for name, tensor in tensors.items()}
    save_tensors(renamed_tensors, folder / WEIGHTS, {"format": "pt"})
    matrices = {name.split(".", 3)[3].rpartition(".")[0] for name in tensors}
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(THEIRS[matrix] for matrix in matrices),
        "fan_in_fan_out": True,  # of GPT-2's Conv1D layers
        "inference_mode": True,
    }
    write_json(folder / CONFIG, options)


def their_name(name: str) -> str:
    matrix, _, part = name.rpartition(".lora_")
    return f"base_model.model.transformer.{renamed(matrix, NAMES)}.lora_{part.upper()}.weight"
