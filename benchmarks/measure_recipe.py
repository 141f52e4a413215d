"""Which way of training learns most in the same time: python -m benchmarks.measure_recipe [SECONDS [WAY …]].

For docs/recipes.md. Each of WAYS trains for SECONDS (120) of one core on a mixture of verse, classical and modern
Chinese; the learning rate falls at the end. docs/models.md has the commands that make the sources and outputs/wider.
The table has the perplexity a character of each source's validation rows.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.moyun_turns import bare_steps
from modules.config.loader import load_config
from modules.config.training import TrainingConfig
from modules.system.hardware import keep_freed_memory
from pipelines.finetune import finetune
from pipelines.pretrain import pretrain
from pipelines.train import TrainResult

SOURCES = {
    "verse": ("prepared/full/poems", 0.30),
    "classical": ("prepared/classical", 0.15),
    "modern": ("prepared/modern", 0.30),
    "articles": ("prepared/articles", 0.15),
    "statutes": ("prepared/statutes", 0.10),
}
MIX = ", ".join(f"{{name: {name}, path: {path}, weight: {weight}}}" for name, (path, weight) in SOURCES.items())
SHARED = [
    f"data.mix=[{MIX}]", "data.sequence_length=512", "data.over_long=split", "train.batch_tokens=4096",
    "train.max_epochs=null", "train.schedule=wsd", "train.warmup_steps=20", "train.decay_fraction=0.3",
    "train.validate_every_n_steps=1000000", "train.save_every_n_steps=1000000", "train.sample_prompts=[]",
    "trainer.progress_bar=false", "tracking.log_model=false", "tracking.log_system_metrics=false",
]  # fmt: skip
MUON = ["train.optimizer=muon", "train.learning_rate=0.004"]
WIDER = ["train.init_from=outputs/wider"]
WAYS = {
    "characters": ["model=mini", "tokenizer.vocab_size=9000", *MUON],
    "bpe": ["model=mini", "tokenizer.kind=bpe", "tokenizer.vocab_size=12000", *MUON],
    "poems": ["train.init_from=models/poems", *MUON],
    "wider": [*WIDER, *MUON],
    "wider, half the rate": [*WIDER, MUON[0], "train.learning_rate=0.002"],
    "wider, twice the rate": [*WIDER, MUON[0], "train.learning_rate=0.008"],
    "wider, half the batch": [*WIDER, *MUON, "train.batch_tokens=2048"],
    "wider, AdamW": [*WIDER, "train.optimizer=adamw", "train.learning_rate=0.001"],
}
"""Name → what is trained and how, beside SHARED."""


def main(seconds: str = "120", *names: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"| way | steps | million tokens | {' | '.join(SOURCES)} |\n|{'---|' * (3 + len(SOURCES))}")
    for name in names or WAYS:
        stage = pretrain if "model=mini" in WAYS[name] else finetune
        arguments = [*SHARED, *WAYS[name]]
        config: TrainingConfig = load_config(stage.__name__, [*arguments, "train.max_steps=6"])
        steps = int(float(seconds) / bare_steps(config, steps=5, warmup=1)["step_seconds"])
        made: TrainResult = stage(load_config(stage.__name__, [*arguments, f"train.max_steps={steps}"]))
        found = [(made.metrics or {})[f"val/{source}/perplexity_per_char"] for source in SOURCES]
        tokens = steps * made.plan.read_an_epoch / made.plan.steps_per_epoch / 1e6
        print(f"| {name} | {steps} | {tokens:.2f} | {' | '.join(f'{value:.1f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
