"""`python -m tools.recipes`: works out the tables of docs/recipes.md anew, from the commands that stand in it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules.config.loader import load_config
from modules.config.model import ModelConfig, SizeConfig
from modules.model.decoder import parameter_count
from modules.model.lora import lora_parameter_count
from modules.training.planning.memory import StepMemory
from modules.training.planning.memory_limit import CPU_TOKENS

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT))

TARGET = ROOT / "docs" / "recipes.md"

VOCABULARY = {"base": 21_128, "large": 21_128}
"""Ids of the published checkpoints; 51,200 from 1.3B on."""

GPU_FLOPS, USED = 989e12, 0.4
"""bf16 peak of an H100 SXM (NVIDIA's data sheet, without sparsity), and the share that is assumed of it."""

TOKENS = 300e9
"""What every model of the GPT-3 paper was trained on."""

TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def document(text: str) -> str:
    """The text with its tables as they should be, of the commands above each."""
    tables = {"pretraining": pretraining_table, "finetuning": finetuning_table}
    return TABLE.sub(
        lambda found: found[1] + "\n".join(tables[found[2]](text[: found.start()])) + "\n" + found[3], text
    )


def commands(text: str, stage: str) -> list[list[str]]:
    """The arguments of each `python -m pipelines.STAGE` that stands in a block."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(rf"^    .*pipelines\.{stage} (.*)$", joined, re.MULTILINE)]


def pretraining_table(text: str) -> Iterator[str]:
    yield "| size | parameters | devices | memory a device | steps for 300 B tokens | days |"
    yield "|---|---|---|---|---|---|"
    for arguments in commands(text, "pretrain"):
        config = load_config("pretrain", arguments)
        name = next(argument.removeprefix("model=") for argument in arguments if argument.startswith("model="))
        size: SizeConfig = config.model
        size.vocab_size = VOCABULARY.get(name, 51_200)
        world = config.trainer.devices * config.trainer.nodes
        flops = (6 * parameter_count(size) + 12 * size.num_hidden_layers * size.hidden_size * 2048) * TOKENS
        days = flops / (world * GPU_FLOPS * USED) / 86_400
        steps = f"{TOKENS / size.batch_tokens:,.0f}"
        row = [name, f"{parameter_count(size):,}", str(world), memory(config, size), steps, f"{days:,.1f}"]
        yield f"| {' | '.join(row)} |"


def finetuning_table(text: str) -> Iterator[str]:
    yield "| size | all weights, float32 | all weights, bf16 | LoRA, rank 8, bf16 | trainable of it |"
    yield "|---|---|---|---|---|"
    for name in ("base", "large", "1.3b", "2.7b", "13b", "30b", "175b"):
        size = load_config("pretrain", [f"model={name}"]).model
        size.vocab_size = VOCABULARY.get(name, 51_200)
        row = [name]
        for options in ([], ["trainer.precision=bf16-true"], ["trainer.precision=bf16-true", "lora.rank=8"]):
            given = [
                "train.init_from=FOLDER",
                "data.sequence_length=128",
                "trainer.activation_checkpointing=full",
                *options,
            ]
            config = load_config("finetune", given)
            row.append(memory(config, size))
        row.append(f"{lora_parameter_count(size, config.lora):,}")
        yield f"| {' | '.join(row)} |"


def memory(config: Any, model: ModelConfig) -> str:
    """Of a step whose micro-batches are full of documents as long as may be."""
    length = config.data.sequence_length
    documents = [length] * max(1, (config.train.micro_batch_tokens or CPU_TOKENS) // length)
    adapters = lora_parameter_count(model, config.lora) if config.lora.rank else None
    needed = StepMemory(model, config.trainer, documents, True, adapters).memory()
    return f"{needed.peak / 2**30:,.1f} GiB"


if __name__ == "__main__":
    TARGET.write_text(document(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
