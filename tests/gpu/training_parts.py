"""Parts of the check about training, through what pipelines.pretrain and pipelines.finetune are made of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import facts as machine_facts
from benchmarks.moyun_turns import joined
from modules.config.loader import load_config
from modules.config.training import TrainerConfig
from modules.data.corpora.folders import SAMPLE
from modules.data.packing import BEGINNING
from modules.inference.text_generator import Continuation, TextGenerator
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import load_tokenizer
from modules.training.fit import make_module, make_trainer
from modules.training.planning.plan import Course
from modules.training.setup import TrainingSetup
from modules.training.utilization import Utilization
from pipelines.train import set_up_training

from .results import DEVICE, ON_GPU, OUT, POEMS, SIZES, WORK, record

STEP_TOKENS = 65_536 if ON_GPU else 256
STEPS, WARMUP = (10, 4) if ON_GPU else (3, 1)
VOCABULARY = 21_128
"""Of the published large model."""


class Recorder(Logger):
    """Each step's metrics, in order."""

    name = version = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def timed(call: Any, repeats: int = 10) -> float:
    """Seconds of one call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def facts() -> None:
    found = machine_facts(torch.get_num_threads())
    values: dict[str, Any] = {"card": found.get("GPU", "none"), "torch": torch.__version__, "date": found["date"]}
    if not ON_GPU:
        return record("facts", "this machine", None, **values)
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    values["bf16 TFLOP/s"] = 2 * 8192**3 / timed(lambda: a @ b) / 1e12
    source = torch.empty(2**31, device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    values["copy TB/s"] = 2 * source.nbytes / timed(lambda: target.copy_(source)) / 1e12
    return record("facts", "this machine", values["bf16 TFLOP/s"] > 700 and values["copy TB/s"] > 2.7, **values)


def train(
    stage: str,
    *arguments: str,
    steps: int,
    rows: Any = None,
    callbacks: Sequence[pl.Callback] = (),
    double: bool = False,
    random_weights: bool = False,
) -> tuple[dict[str, list[float]], TrainingSetup]:
    """Training as `fit` does it, without checkpoints and validation: each step's metrics, and the plan.

    double: in float64. random_weights: made on the device, as it takes a CPU half a minute to draw a billion.
    """
    common = [f"trainer.accelerator={'gpu' if ON_GPU else 'cpu'}", "trainer.progress_bar=false"]
    common += [f"train.max_steps={steps}", "train.max_epochs=null", "train.sample_prompts=[]"]
    config = load_config(stage, [*common, f"data.cache_dir={WORK / 'cache'}", *arguments])
    training = set_up_training(config, rows)
    module, recorder = make_module(config, training), Recorder()
    if double:
        module.decoder.double()
    if random_weights:
        module.tensors = random_tensors(module)
    watching = [Utilization(training.model, config.trainer)] if config.trainer.accelerator == "gpu" else []
    course = Course(BEGINNING, total_steps=steps, validate_every=steps + 1)
    trainer = make_trainer(config.trainer, course, WORK, recorder, [*watching, *callbacks])
    trainer.fit(module, training.data)
    return recorder.metrics, training


def random_tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.decoder.named_parameters():
        drawn = torch.randn(parameter.shape, device=DEVICE) * 0.02
        yield name, drawn + 1 if name.endswith("layernorm.weight") else drawn


class Gradients(pl.Callback):
    """Those of the first step, in float64 on the CPU."""

    found: Tensor

    def on_before_optimizer_step(self, trainer: Any, module: pl.LightningModule, optimizer: Any) -> None:
        gradients = (parameter.grad for parameter in module.parameters())
        self.found = torch.cat([g.detach().double().cpu().flatten() for g in gradients if g is not None])


def poems(count: int) -> list[str]:
    return [row["src_txt"] for row in read_jsonl(SAMPLE)[:count]]


def parity() -> None:
    """One step of the embedded model, and texts, beside the CPU's."""
    rows = {"src_txt": poems(60 if ON_GPU else 12)}
    common = [f"train.init_from={POEMS}", "train.batch_size=40", "train.gradient_clip_val=0", "data.sequence_length=64"]

    def step(*arguments: str, double: bool = False) -> tuple[float, Tensor]:
        gradients = Gradients()
        metrics, _ = train("finetune", *common, *arguments, steps=1, rows=rows, callbacks=[gradients], double=double)
        return metrics["train/loss"][0], gradients.found

    loss, gradient = step("trainer.accelerator=cpu", "trainer.precision=32-true", double=True)
    for precision, most in {"32-true": 1e-4, "bf16-mixed": 3e-2}.items():
        found, other = step(f"trainer.precision={precision}")
        errors = {"loss": abs(found - loss) / loss, "gradients": float((other - gradient).norm() / gradient.norm())}
        record("parity", f"{precision} beside float64 on the CPU", max(errors.values()) < most, **errors)
    greedy_texts()


def greedy_texts() -> None:
    from modules.checkpoint.loading import load_for_inference, load_model
    from modules.config.generation import GenerationConfig

    tokenizer, config = load_tokenizer(POEMS), GenerationConfig(temperature=0.0, max_new_tokens=24)
    openings = [text[:5] for text in poems(20)]
    decoders = {"CPU": load_model(POEMS, "cpu", torch.float32)}
    decoders |= {dtype: load_for_inference(POEMS, dtype) for dtype in ("float32", "bfloat16")}
    texts = {name: TextGenerator(decoder, tokenizer, config).write(openings) for name, decoder in decoders.items()}
    for dtype, least in {"float32": 0.95, "bfloat16": None}.items():
        share = fmean(equal_characters(*pair) for pair in zip(texts["CPU"], texts[dtype], strict=True))
        record("parity", f"greedy texts in {dtype}", None if least is None else share >= least, characters_equal=share)


def equal_characters(one: Continuation, other: Continuation) -> float:
    """The share of the longer text that both have in the same place."""
    equal = sum(a == b for a, b in zip(one.text, other.text, strict=False))
    return equal / max(len(one.text), len(other.text), 1)


def compiled() -> None:
    """The same steps eager and compiled, where that can be chosen: losses, graphs, seconds until the first is done."""
    if "compile" not in TrainerConfig.__dataclass_fields__ or not ON_GPU:
        return record("compiled", "trainer.compile isn't for this machine, or not there")
    losses = {}
    for switch in ("false", "true"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        begun = time.monotonic()
        given = [f"train.init_from={POEMS}", "train.batch_size=null", "train.batch_tokens=4096"]
        given += ["trainer.precision=bf16-mixed", f"trainer.compile={switch}"]
        metrics, _ = train("finetune", *given, steps=6, rows={"src_txt": poems(2000)})
        losses[switch], seconds = torch.tensor(metrics["train/loss"]), time.monotonic() - begun
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        record("compiled", f"trainer.compile={switch}", graphs <= 4, graphs=graphs, seconds_of_6_steps=seconds)
    apart = float((losses["true"] / losses["false"] - 1).abs().max())
    return record("compiled", "losses beside eager ones", apart < 5e-3, largest_difference=apart)


class ProfiledStep(pl.Callback):
    """torch's profile of the last step, into profiles.txt: where the next person looks first."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.last = name, steps - 1
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
        self.profiler = profile(activities=activities, acc_events=True)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            self.profiler.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            self.profiler.stop()
            order = "self_cuda_time_total" if ON_GPU else "self_cpu_time_total"
            table = self.profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
            with (OUT / "profiles.txt").open("a", encoding="utf-8") as file:
                file.write(f"{self.name}\n{table}\n\n")


def utilization(size: str) -> None:
    """pipelines.pretrain with what a GPU is given by default: speed, utilization, memory beside the plan's."""
    longest = 2048 if ON_GPU else 128
    texts = [row["src_txt"] for row in read_jsonl(SAMPLE)][: None if ON_GPU else 60]
    for length in (longest,) if size == "2.7b" else (longest, longest // 2):  # as there is little time left for it
        rows = joined(["".join(texts)], length + 2)[: 4 * STEP_TOKENS // length]
        given = [f"data.sequence_length={length}", "data.over_long=cut"]
        one_speed(f"{size}, documents of {length}", rows, f"model={size}", *given)
        if size == SIZES[0] and length == longest and "deterministic" in TrainerConfig.__dataclass_fields__:
            free = "trainer.deterministic=false"
            one_speed(f"{size}, documents of {length}, {free}", rows, f"model={size}", *given, free)
    if size != "2.7b":
        one_speed(f"{size}, poems", texts, f"model={size}", f"data.sequence_length={longest // 2}")


def one_speed(what: str, texts: list[str], *arguments: str) -> None:
    arguments = (*arguments, f"model.vocab_size={VOCABULARY}", f"tokenizer.path={POEMS}")
    metrics, training = train(
        "pretrain", *arguments, f"train.batch_tokens={STEP_TOKENS}", steps=STEPS + 1, rows={"src_txt": texts},
        callbacks=[ProfiledStep(what, STEPS + 1)], random_weights=True,
    )  # fmt: skip
    counted = {name: values[WARMUP:STEPS] for name, values in metrics.items()}
    values: dict[str, Any] = {"tokens/s": median(counted["train/tokens_per_second"])}
    planned = training.plan.demand.memory().peak / 2**30
    if ON_GPU:
        values["MFU"] = median(counted.get("train/mfu", [float("nan")]))
        values["peak GiB"] = max(counted["train/peak_memory_gib"])
    values |= {"planned GiB": planned, "tokens a pass": training.plan.demand.micro_batch_tokens}
    record("training", what, not ON_GPU or values["peak GiB"] <= 1.05 * planned, **values)
