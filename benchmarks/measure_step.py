"""Where the time of one training step goes: python -m benchmarks.measure_step [model] [tokens a step].

For docs/performance.md. The step is that of pipelines.finetune on the bundled poems, without Lightning; torch's
profiler slows it a little.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import profile

from benchmarks.config import BenchmarkConfig
from benchmarks.moyun_turns import epochs, training_arguments
from benchmarks.work import make_work
from modules.config.loader import load_config
from modules.system.hardware import keep_freed_memory
from modules.training.fit import make_module
from pipelines.train import set_up_training

KINDS = {
    "matrix products": ("_linear_pointwise", "::mm", "::addmm"),
    "attention": ("scaled_dot_product", "bmm", "_softmax", "MaterializedAttention"),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "softmax and loss": ("exp", "amax", "sub_", "div_", "scatter", "gather", "log"),
    "embeddings": ("embedding", "index"),
    "optimizer and clipping": ("adamw", "foreach", "vector_norm", "::mul_"),
    "copies and layout": ("copy_", "::cat", "fill_", "zero", "::empty"),
    "sums and differences": ("::add", "::sum", "::mul", "::sub"),
}


def kind_of(operator: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "other operators")


def main(model: str = "base", tokens: str = "4096") -> None:
    keep_freed_memory()
    os.chdir(tempfile.mkdtemp())
    sizes: BenchmarkConfig = load_config("benchmark", [f"model={model}"])
    work = make_work(Path.cwd(), sizes.model, seed=0, threads=torch.get_num_threads())
    config = load_config("finetune", training_arguments(work, 128, int(tokens), 3))
    training = set_up_training(config, None)
    module = make_module(config, training)
    module.configure_model()
    optimizer = module.configure_optimizers()["optimizer"]
    for number, batch in enumerate(epochs(training.data, 3)):
        with profile() as profiler:
            started = time.perf_counter()
            for micro_batch in batch.micro_batches:
                (module._step(micro_batch) / batch.trained_tokens).backward()
            torch.nn.utils.clip_grad_norm_(module.trained_parameters().values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - started
        if number == 0:
            continue  # kernels are compiled in the first step
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    spent["between operators"] = seconds - sum(spent.values())
    print(f"{model}, {batch.trained_tokens:,} tokens: {seconds:.2f} s, {batch.trained_tokens / seconds:,.0f} tokens/s")
    for kind, share in spent.most_common():
        print(f"  {share / seconds:6.1%}  {kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
