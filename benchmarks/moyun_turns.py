"""moyun's own turns in `benchmarks`: its commands as a user gives them, and its parts without the frame."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .steps import interleaved, timed_call, timed_steps
from .work import Work, write_texts

NEARLY_EMPTY = ("hidden_size=8", "num_hidden_layers=1", "num_attention_heads=1", "vocab_size=null")
"""A model that costs next to nothing: what is left of a step is the frame around it."""


def training_arguments(work: Work, sequence_length: int, batch_tokens: int, steps: int) -> list[str]:
    """Of pipelines.finetune; everything that it writes goes to this turn's folder."""
    return [
        f"model={work.path('model.yaml')}",
        f"seed={work.seed}",
        f"data.path={work.path('rows.jsonl')}",
        f"data.validation_path={work.path('validation.jsonl')}",
        f"data.sequence_length={sequence_length}",
        "data.cache_dir=cache",  # each turn starts from nothing, as its peers do, and leaves nothing with the user
        f"tokenizer.path={work.path('tokenizer')}",
        "train.batch_size=null",
        f"train.batch_tokens={batch_tokens}",
        "train.max_epochs=null",
        f"train.max_steps={steps}",
        "train.sample_prompts=[]",
        "trainer.accelerator=cpu",
        "trainer.progress_bar=false",
        "output_dir=made",
        "tracking.tracking_uri=sqlite:///mlflow.db",
    ]


def finetune(
    work: Work,
    sequence_length: int,
    batch_tokens: int,
    steps: int,
    warmup: int,
    arguments: list[str] | None = None,
    whole_documents: bool = False,
) -> Any:
    """The whole command; speed from what it logs of each step after the first `warmup`.

    whole_documents: texts joined until each fills sequence_length, as pretraining has them.
    """
    shutil.copy(work.path("mlflow.db"), "mlflow.db")
    given = [*training_arguments(work, sequence_length, batch_tokens, warmup + steps), *(arguments or [])]
    if whole_documents:
        write_texts(Path("joined.jsonl"), joined(work.texts(), sequence_length))
        given.append("data.path=joined.jsonl")
    command("finetune", *given)
    return logged_speed(warmup)


def command(stage: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"pipelines.{stage}", *arguments], check=True)


def joined(texts: list[str], length: int) -> list[str]:
    """At least 2,000 texts of so many characters."""
    text = "".join(texts)
    text *= -(-2000 * length // len(text))
    return [text[start : start + length] for start in range(0, len(text) - length + 1, length)]


def logged_speed(warmup: int) -> dict[str, Any]:
    """Tokens a second, weighing each step by the time until the next was logged."""
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    logged = sorted(client.get_metric_history(run.info.run_id, "train/tokens_per_second"), key=lambda m: m.step)
    moments = np.array([metric.timestamp / 1000 for metric in logged])
    seconds = np.diff(moments)[warmup - 1 :]
    speeds = np.array([metric.value for metric in logged])[warmup:]
    peaks = client.get_metric_history(run.info.run_id, "train/peak_memory_gib")  # of a GPU; the process's is measured
    return ({"peak_gib": max(metric.value for metric in peaks)} if peaks else {}) | {
        "value": float((speeds * seconds).sum() / seconds.sum()),
        "step_seconds": float(seconds.mean()),
        "first_step_at": float(moments[0]),
        "ended_at": float(moments[-1]),
    }


def bare_loop(
    work: Work,
    sequence_length: int,
    batch_tokens: int,
    steps: int,
    warmup: int,
    arguments: list[str] | None = None,
) -> Any:
    """The same decoder, loss, steps and optimizer in a plain loop: no Lightning, no logging, no checkpoints."""
    from modules.config.loader import load_config

    given = training_arguments(work, sequence_length, batch_tokens, warmup + steps)
    return bare_steps(load_config("finetune", [*given, *(arguments or [])]), steps, warmup)


def bare_steps(config: Any, steps: int, warmup: int) -> dict[str, Any]:
    """The first steps of a training, timed."""
    from torch.nn.utils import clip_grad_norm_

    from modules.training.fit import make_module
    from pipelines.train import set_up_training

    training = set_up_training(config, None)
    module = make_module(config, training)
    module.configure_model()
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = module.trained_parameters().values()

    def step(batch: Any) -> None:
        nll = 0.0
        for micro_batch in batch.micro_batches:
            loss = module._step(micro_batch)
            nll += float(loss.detach())
            (loss / batch.trained_tokens).backward()
        clip_grad_norm_(parameters, config.train.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()

    batches = ((batch, batch.trained_tokens) for batch in epochs(training.data, warmup + steps))
    return timed_steps(batches, step, warmup)


def epochs(data: Any, steps: int) -> Any:
    """So many steps of the data module, over again if need be."""
    count = 0
    while True:
        for batch in data.train_dataloader():
            if count == steps:
                return
            count += 1
            yield batch


def overhead(work: Work, turn: str, steps: int) -> Any:
    """Milliseconds a step of a nearly empty model, of about 128 tokens: turn is finetune or bare_loop."""
    arguments = [f"model.{value}" for value in NEARLY_EMPTY]
    turns = {"finetune": finetune, "bare_loop": bare_loop}
    found = turns[turn](work, 128, 128, steps, warmup=20, arguments=arguments)
    return found | {"value": 1000 * found["step_seconds"]}


def first_step(work: Work, sequence_length: int, batch_tokens: int) -> Any:
    """pipelines.finetune from nothing to the end of its first step."""
    return {"ended_at": finetune(work, sequence_length, batch_tokens, steps=1, warmup=1)["first_step_at"]}


def generate(work: Work, rows: int, prompt_tokens: int, new_tokens: int, model: str = "model", **options: Any) -> Any:
    """pipelines.pipeline, as Python code uses it; options are its own (dtype, …)."""
    from pipelines import pipeline

    generator = pipeline(model=str(work.path(model)), max_new_tokens=new_tokens, temperature=0, **options)
    texts = work.prompts(rows, prompt_tokens)[0]
    return timed_call(partial(generator, texts), rows * new_tokens)


def convert(work: Work, target: str, **options: str) -> Any:
    """The model folder in another format, beside it; before anything is measured."""
    given = [f"{name}={value}" for name, value in options.items()]
    command("convert", f"source={work.path('model')}", f"target={work.path(target)}", *given)
    return {}


def first_token(work: Work) -> Any:
    """The command from nothing to one token of text."""
    command("generate", "白日依山尽，", f"model={work.path('model')}", "generation.max_new_tokens=1")
    return {"ended_at": time.time()}


def help_text(work: Work) -> Any:
    command("generate", "--help")
    return {"ended_at": time.time()}


def growth(work: Work, curve: str, points: list[Any], steps: int) -> Any:
    """Seconds of each point of a curve, and what they should be proportional to; the last point's are the value."""
    if curve == "rows":
        seconds, costs = [seconds_of_rows(work, count) for count in points], points
    else:
        from .scaling import training_points

        calls, costs = zip(*training_points(work, curve, points), strict=True)
        seconds = [min(found) for found in interleaved(calls, steps)]
    return {"value": seconds[-1], "seconds_of": seconds, "costs": costs, "ended_at": time.time()}


def seconds_of_rows(work: Work, count: int) -> float:
    from modules.config.loader import load_config
    from pipelines.train import set_up_training

    texts = work.texts()
    path = Path(f"rows-{count}.jsonl")
    with path.open("w", encoding="utf-8") as stream:  # each row is told from its copies by a number
        lines = ({"src_txt": f"{texts[index % len(texts)]}{index}"} for index in range(count))
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    given = [*training_arguments(work, 128, 4096, 1), f"data.path={path}", "train.max_epochs=1", "train.max_steps=null"]
    config = load_config("finetune", given)
    begun = time.perf_counter()
    for _ in set_up_training(config, None).data.train_dataloader():
        pass
    return time.perf_counter() - begun


def tokenizing(work: Work, kind: str) -> Any:
    """Megabytes of rows a second, from rows to what training reads of them."""
    from datasets import Dataset

    from modules.data.encoding import encode_rows
    from modules.tokenizer.tokenizer import load_tokenizer

    from .tokenizing import rows_of, vocabulary

    texts, megabytes = rows_of(work)
    folder = work.path("tokenizer")
    if kind == "bert":
        folder = Path("bert")
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(vocabulary(texts)) + "\n", encoding="utf-8")
    tokenizer, rows = load_tokenizer(folder), Dataset.from_dict({"src_txt": texts})
    return timed_call(lambda: encode_rows(rows, tokenizer, 512), megabytes)
