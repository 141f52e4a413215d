"""Adapters on disk, without the model that they belong to.

adapter.safetensors     lora_a and lora_b by the decoder's names, query_key_value's rows in three blocks (all Q, all K,
                        all V) like the weights of a model folder
adapter.yaml            rank, alpha, target_modules, and SHA-256 of the base's weights and of adapter.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config.loader import to_yaml, validate
from ..config.model import LoraConfig, ModelConfig
from ..model.decoder import meta_decoder
from ..model.lora import add_lora, merged
from ..system.atomic import new_folder
from ..system.bounded_read import read_plain_yaml
from ..system.checksums import sha256_of
from .weights import (
    CheckpointError,
    StoredModel,
    StoredTensor,
    blocks_to_heads,
    check_shapes,
    heads_to_blocks,
    read_safetensors,
    save_tensors,
)

WEIGHTS, FACTS = "adapter.safetensors", "adapter.yaml"


@dataclass(frozen=True)
class Adapter:
    """An adapter at rest."""

    config: LoraConfig
    base_weights_sha256: str
    """weights.weights_hash of the model folder that it was trained on."""
    tensors: Mapping[str, StoredTensor]
    """As in the file: query_key_value in three blocks."""


def save_adapter(
    folder: Path, tensors: Mapping[str, Tensor], model: ModelConfig, config: LoraConfig, base_hash: str
) -> Path:
    """Writes the adapters of a model, whole or not at all. Raises FileExistsError rather than overwrite.

    tensors: by the decoder's names; others than lora_a and lora_b are left out.
    base_hash: weights.weights_hash of the model folder that they were trained on.
    """
    heads = model.num_attention_heads
    stored = {}
    for name, tensor in tensors.items():
        if name.endswith((".lora_a", ".lora_b")):
            rows = heads_to_blocks(tensor, heads) if name.endswith("query_key_value.lora_b") else tensor
            stored[name] = rows.detach().cpu().contiguous()
    with new_folder(folder, "an adapter") as draft:
        save_tensors(stored, draft / WEIGHTS, {"format": "pt"})
        facts = {
            "rank": config.rank,
            "alpha": config.alpha,
            "target_modules": config.target_modules,
            "base_weights_sha256": base_hash,
            "adapter_sha256": adapter_hash(draft),
        }
        (draft / FACTS).write_text(to_yaml(facts), encoding="utf-8")
    return folder


def adapter_hash(folder: Path) -> str:
    """SHA-256 of an adapter's tensors."""
    return sha256_of(folder / WEIGHTS)


def read_adapter(folder: str | Path) -> Adapter:
    """What `save_adapter` wrote. Raises CheckpointError for what is missing or damaged."""
    folder = Path(folder)
    for name in (WEIGHTS, FACTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no adapter folder: {name} is missing")
    try:
        facts = read_plain_yaml(folder / FACTS)
        base, own = str(facts.pop("base_weights_sha256")), facts.pop("adapter_sha256")
        config = LoraConfig(**facts)
        validate(config)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS} is damaged ({error}); copy the folder again") from error
    if adapter_hash(folder) != own:
        raise CheckpointError(f"{folder / WEIGHTS} differs from what was saved; copy the folder again")
    return Adapter(config, base, read_safetensors(folder / WEIGHTS))


def apply_adapter(model: StoredModel, adapter: Adapter, weights_sha256: str) -> StoredModel:
    """The model with the adapter merged into it, still on disk: each matrix is merged, in float32, when it is read.

    weights_sha256: weights.weights_hash of the folder that `model` was opened from.
    Raises CheckpointError where the adapter was trained on other weights.
    """
    if weights_sha256 != adapter.base_weights_sha256:
        raise CheckpointError(
            f"the adapter was trained on other weights (SHA-256 {adapter.base_weights_sha256[:12]}…) than these "
            f"({weights_sha256[:12]}…): give the model folder that train.init_from named"
        )
    decoder = meta_decoder(model.config)
    names = add_lora(decoder, adapter.config, seed=0)
    expected = {name: tuple(decoder.get_parameter(name).shape) for name in names}
    check_shapes(WEIGHTS, FACTS, expected, adapter.tensors)
    heads = model.config.num_attention_heads
    weights = dict(model.weights)
    for name in {name.rpartition(".")[0] for name in names}:
        weights[f"{name}.weight"] = with_adapter(weights[f"{name}.weight"], adapter, name, heads)
    return StoredModel(model.config, weights)


def with_adapter(weight: StoredTensor, adapter: Adapter, name: str, heads: int) -> StoredTensor:
    """One matrix, by its module's name, merged when it is read."""
    scale = adapter.config.alpha / adapter.config.rank

    def merge(weight: Tensor) -> Tensor:
        lora_a, lora_b = (adapter.tensors[f"{name}.{part}"].read() for part in ("lora_a", "lora_b"))
        if "query_key_value" in name:
            lora_b = blocks_to_heads(lora_b, heads)
        return merged(weight, lora_a, lora_b, scale)

    return weight.map(merge)
