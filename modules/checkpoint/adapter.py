"""Adapters on disk, without the model that they belong to.

adapter.safetensors     lora_a and lora_b by the decoder's names, query_key_value's rows in three blocks (all Q, all K,
                        all V) like the weights of a model folder
adapter.yaml            rank, alpha, target_modules, SHA-256 of the base's weights, of its tokenizer and of
                        adapter.safetensors, and how prompts were made in the adapter's training (template, those of
                        tasks, the most tokens of a source)

The same in PEFT's layout: peft_adapter.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..config.loader import to_yaml, validate
from ..config.model import LoraConfig, ModelConfig
from ..model.decoder import meta_decoder
from ..model.lora import add_lora, merged
from ..system.atomic import new_folder
from ..system.bounded_read import read_plain_yaml
from ..system.checksums import sha256_of
from ..tokenizer.prompt_template import split_template
from ..tokenizer.tokenizer import Tokenizer, load_tokenizer
from .model_folder import read_provenance
from .peft_adapter import WEIGHTS as PEFT_WEIGHTS
from .peft_adapter import is_peft, read_peft, write_peft
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

PROMPTS = ("tokenizer_sha256", "prompt_template", "task_templates", "source_limit")
"""What FACTS tells of how prompts were made; nothing where an earlier moyun wrote it."""


@dataclass(frozen=True)
class Adapter:
    """An adapter at rest."""

    config: LoraConfig
    base_weights_sha256: str | None
    """weights.weights_hash of the model folder that it was trained on; None: unknown, as PEFT doesn't tell."""
    tensors: Mapping[str, StoredTensor]
    """As in the file: query_key_value in three blocks."""
    tokenizer_sha256: str | None = None
    """Fingerprint of the tokenizer that it was trained with, but for the prompt template; None: unknown, with it the
    template, as in adapters of an earlier moyun and in PEFT's."""
    prompt_template: str | None = None
    task_templates: Mapping[str, str] | None = None
    source_limit: int | None = None
    """As Tokenizer has both."""

    def with_prompts_of(self, tokenizer: Tokenizer) -> Adapter:
        """The same adapter, trained with this tokenizer."""
        return replace(
            self,
            tokenizer_sha256=tokenizer.with_prompt_template(None).fingerprint,
            prompt_template=tokenizer.prompt_template,
            task_templates=tokenizer.task_templates,
            source_limit=tokenizer.source_limit,
        )


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    config: LoraConfig,
    base_hash: str,
    tokenizer: Tokenizer,
) -> Path:
    """Writes the adapters of a model, whole or not at all. Raises FileExistsError rather than overwrite.

    tensors: by the decoder's names; others than lora_a and lora_b are left out.
    base_hash: weights.weights_hash of the model folder that they were trained on.
    tokenizer: with the prompt template that they were trained with.
    """
    heads = model.num_attention_heads
    stored = {}
    for name, tensor in tensors.items():
        if name.endswith((".lora_a", ".lora_b")):
            rows = heads_to_blocks(tensor, heads) if name.endswith("query_key_value.lora_b") else tensor
            stored[name] = rows.detach().cpu().contiguous()
    with new_folder(folder, "an adapter") as draft:
        save_tensors(stored, draft / WEIGHTS, {"format": "pt"})
        write_facts(draft, Adapter(config, base_hash, {}).with_prompts_of(tokenizer), draft / WEIGHTS)
    return folder


def write_facts(folder: Path, adapter: Adapter, weights: Path) -> None:
    facts = {
        "rank": adapter.config.rank,
        "alpha": adapter.config.alpha,
        "target_modules": adapter.config.target_modules,
        "base_weights_sha256": adapter.base_weights_sha256,
        "tokenizer_sha256": adapter.tokenizer_sha256,
        "prompt_template": adapter.prompt_template,
        "task_templates": dict(adapter.task_templates or {}),
        "source_limit": adapter.source_limit,
        "adapter_sha256": sha256_of(weights),
    }
    (folder / FACTS).write_text(to_yaml(facts), encoding="utf-8")


def adapter_hash(folder: Path) -> str:
    """SHA-256 of an adapter's tensors."""
    return sha256_of(folder / WEIGHTS)


def read_adapter(folder: str | Path) -> Adapter:
    """What `save_adapter` wrote, or an adapter in PEFT's layout. Raises CheckpointError for what is missing or damaged.

    Where an adapter of an earlier moyun still lies beside the model that it was merged into, that one's tokenizer tells
    the prompt template.
    """
    folder = Path(folder)
    if is_peft(folder):
        return read_peft_adapter(folder)
    for name in (WEIGHTS, FACTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no adapter folder: {name} is missing")
    adapter = read_facts(folder, folder / WEIGHTS)
    merged_into = folder.parent / "model"
    if not adapter.tokenizer_sha256 and read_provenance(merged_into).get("adapter_sha256") == adapter_hash(folder):
        adapter = adapter.with_prompts_of(load_tokenizer(merged_into))
    return replace(adapter, tensors=read_safetensors(folder / WEIGHTS))


def read_peft_adapter(folder: Path) -> Adapter:
    """Base, tokenizer and template are known where moyun wrote the folder."""
    config, tensors = read_peft(folder)
    known = Adapter(config, None, {})
    if (folder / FACTS).is_file():
        known = read_facts(folder, folder / PEFT_WEIGHTS)
    return replace(known, config=config, tensors=tensors)


def read_facts(folder: Path, weights: Path) -> Adapter:
    """An adapter but for its tensors."""
    try:
        facts = read_plain_yaml(folder / FACTS)
        base, own = facts.pop("base_weights_sha256"), facts.pop("adapter_sha256")
        prompts = {name: facts.pop(name, None) for name in PROMPTS}
        config = LoraConfig(**facts)
        validate(config)
        for template in (prompts["prompt_template"], *(prompts["task_templates"] or {}).values()):
            split_template(template)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS} is damaged ({error}); copy the folder again") from error
    if sha256_of(weights) != own:
        trained_on = f"; if PEFT has trained it on, delete {FACTS}" if weights.name == PEFT_WEIGHTS else ""
        raise CheckpointError(f"{weights} differs from what was saved; copy the folder again{trained_on}")
    return Adapter(config, base, {}, **prompts)


def write_peft_adapter(folder: Path, adapter: Adapter, tokenizer: Tokenizer) -> list[str]:
    """Fills an empty folder with an adapter in PEFT's layout; returns notes for whoever exports.

    tokenizer: that of its prompts.
    """
    write_peft(folder, adapter.config, adapter.tensors)
    write_facts(folder, adapter.with_prompts_of(tokenizer), folder / PEFT_WEIGHTS)
    if tokenizer.prompt_template is None:
        return []
    return [f"PEFT applies no prompt template: write prompts as {tokenizer.prompt_template!r} there"]


def adapted_tokenizer(base: Tokenizer, adapter: Adapter) -> tuple[Tokenizer, list[str]]:
    """The base's tokenizer with the prompt template of the adapter's training, and notes where that isn't known.

    Raises CheckpointError where the adapter was trained with another tokenizer.
    """
    if adapter.tokenizer_sha256 is None:
        kept = "none" if base.prompt_template is None else repr(base.prompt_template)
        return base, [
            f"the adapter doesn't tell the prompt template that it was trained with: the source's is kept ({kept}); "
            "prompt_template='…{src_txt}…' gives the target another"
        ]
    if adapter.tokenizer_sha256 != base.with_prompt_template(None).fingerprint:
        raise CheckpointError(
            "the adapter was trained with another tokenizer than the source's: give the model folder that "
            "train.init_from named"
        )
    tokenizer = base.with_prompt_template(adapter.prompt_template, adapter.task_templates)
    return tokenizer.with_source_limit(adapter.source_limit), []


def adapted(
    model: StoredModel, tokenizer: Tokenizer, adapter: Adapter, weights_sha256: str
) -> tuple[StoredModel, Tokenizer, list[str]]:
    """`apply_adapter` and `adapted_tokenizer`; the list holds what is to be said of it."""
    tokenizer, notes = adapted_tokenizer(tokenizer, adapter)
    if adapter.base_weights_sha256 is None:
        notes.append("the adapter doesn't tell which weights it was trained on: see to it that they are the source's")
    return apply_adapter(model, adapter, weights_sha256), tokenizer, notes


def apply_adapter(model: StoredModel, adapter: Adapter, weights_sha256: str) -> StoredModel:
    """The model with the adapter merged into it, still on disk: each matrix is merged, in float32, when it is read.

    weights_sha256: weights.weights_hash of the folder that `model` was opened from.
    Raises CheckpointError where the adapter was trained on other weights.
    """
    if adapter.base_weights_sha256 and weights_sha256 != adapter.base_weights_sha256:
        raise CheckpointError(
            f"the adapter was trained on other weights (SHA-256 {adapter.base_weights_sha256[:12]}…) than these "
            f"({weights_sha256[:12]}…): give the model folder that train.init_from named"
        )
    decoder = meta_decoder(model.config)
    names = add_lora(decoder, adapter.config, seed=0)
    expected = {name: tuple(decoder.get_parameter(name).shape) for name in names}
    check_shapes("the adapter", "this model", expected, adapter.tensors)
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
