"""Who takes turns with whom: a list of comparisons for each part of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from modules.system.hardware import bf16_speedup

from .config import BenchmarkConfig
from .machine import flops_per_token, gpu_peak
from .subjects import Comparison, Medians, Subject, tcmalloc

OWN = "benchmarks.moyun_turns"
PEERS = "benchmarks.peer_"
FINETUNE = "moyun, pipelines.finetune"
BARE = "moyun, bare loop"
LLAMA_CPP = ("xllamacpp", "gguf")
PRODUCTS = "limit: the matrix products alone"


def comparisons(config: BenchmarkConfig) -> Iterator[Comparison]:
    """Of the parts in config.what, in the order of PARTS."""
    parts: dict[str, Callable[[BenchmarkConfig], Iterator[Comparison]]] = {
        "training": training,
        "memory": memory,
        "overhead": overhead,
        "generation": generation,
        "startup": startup,
        "data": data,
        "scaling": scaling,
        "mfu": mfu,
    }
    for part, make in parts.items():
        if part in config.what:
            yield from make(config)


def hugging_face(function: str, name: str, options: dict[str, Any], allocator: bool = False) -> Subject:
    name = f"Hugging Face, {name}" + (", tcmalloc" if allocator else "")
    return Subject(name, f"{PEERS}hugging_face:{function}", options, ("transformers",), allocator)


def own(function: str, name: str, options: Mapping[str, Any], needs: tuple[str, ...] = ()) -> Subject:
    return Subject(name, f"{OWN}:{function}", options, needs)


def training(config: BenchmarkConfig) -> Iterator[Comparison]:
    """In float32, and in bfloat16 where the machine computes it faster."""
    for length in config.training.sequence_lengths:
        for bfloat16 in (False, True) if bf16_speedup() > 1 else (False,):
            yield training_comparison(config, length, bfloat16)


def training_comparison(config: BenchmarkConfig, length: int, bfloat16: bool) -> Comparison:
    section = config.training
    steps = {"batch_tokens": section.batch_tokens, "steps": section.steps, "warmup": section.warmup_steps}
    work = {"sequence_length": length, **steps}
    peers = {**work, "bfloat16": bfloat16}
    packed = {**peers, "layout": "packed"}
    precision = f"trainer.precision={'bf16-mixed' if bfloat16 else '32-true'}"
    subjects = [own("finetune", FINETUNE, {**work, "arguments": [precision, *section.arguments]})]
    if length <= min(section.sequence_lengths) and not bfloat16:  # beyond that, peers would mostly compute padding
        padded = f"padded to {length} (as ModelScope does)"
        subjects.append(hugging_face("train", padded, {**peers, "layout": "padded"}))
        subjects.append(hugging_face("train", "padded to the longest", {**peers, "layout": "longest"}))
    subjects += [hugging_face("train", "packed", packed), hugging_face("train", "packed", packed, allocator=True)]
    subjects.append(Subject("litgpt, packed", f"{PEERS}litgpt:train", peers, ("litgpt",)))
    products = {"tokens": section.batch_tokens, "repeats": 3, "bfloat16": bfloat16}
    preloaded = tcmalloc() is not None  # a limit takes what helps
    subjects.append(Subject(PRODUCTS, "benchmarks.machine:products", products, allocator=preloaded))
    what = "bfloat16 (peers under autocast)" if bfloat16 else "float32"
    title = f"Training in {what}, documents of at most {length} tokens, {section.batch_tokens:,} tokens a step"
    note = partial(share_of_limit, flops_per_token(config.model.__dict__, 0))
    name = f"training.{length}.{'bfloat16' if bfloat16 else 'float32'}"
    return Comparison(name, "training", title, "tokens/s", subjects, note=note)


def share_of_limit(flops: float, medians: Medians) -> str:
    if PRODUCTS not in medians:  # its turn failed, as its row says
        return ""
    limit, reached = medians[PRODUCTS], medians[FINETUNE]
    return (
        f"The matrix products alone run at {limit * flops / 1e9:,.0f} GFLOP/s; `pipelines.finetune` reaches "
        f"{reached / limit:.0%} of that limit, which has no attention, normalisation, activation or optimizer in it."
    )


def memory(config: BenchmarkConfig) -> Iterator[Comparison]:
    section, length = config.training, max(config.training.sequence_lengths)
    work = {"sequence_length": length, "batch_tokens": section.memory_tokens, "steps": 1, "warmup": 1}
    less = "train.micro_batch_tokens=1024"
    subjects = [
        own("finetune", FINETUNE, {**work, "arguments": section.arguments}),
        own("finetune", f"{FINETUNE}, {less}", {**work, "arguments": [*section.arguments, less]}),
        hugging_face("train", "packed", {**work, "layout": "packed"}),
        Subject("litgpt, packed", f"{PEERS}litgpt:train", work, ("litgpt",)),
    ]
    title = f"Peak memory of training, {section.memory_tokens // length} × {length} tokens a step"
    yield Comparison("memory", "memory", title, "GiB", subjects, False, "peak_gib", once=True)


def overhead(config: BenchmarkConfig) -> Iterator[Comparison]:
    steps = config.training.overhead_steps
    subjects = [own("overhead", name, {"turn": turn, "steps": steps}) for name, turn in OVERHEAD.items()]
    title = "What Lightning, loader and logging every step cost: a nearly empty model"
    yield Comparison("overhead", "overhead", title, "ms a step", subjects, False, note=added_milliseconds)


OVERHEAD = {FINETUNE: "finetune", BARE: "bare_loop"}


def added_milliseconds(medians: Medians) -> str:
    return f"A step of the whole command takes {medians[FINETUNE] - medians[BARE]:.2f} ms more than a bare loop's."


def generation(config: BenchmarkConfig) -> Iterator[Comparison]:
    section = config.generation
    for rows in section.rows:
        work = {"rows": rows, "prompt_tokens": section.prompt_tokens, "new_tokens": section.new_tokens}
        title = f"Generation, {rows} row{'s' * (rows > 1)}, prompt of {section.prompt_tokens}, {section.new_tokens} new"
        plain = [
            own("generate", "moyun", {**work, "dtype": "float32"}),
            hugging_face("generate", "generate", work),
            ctranslate2("generate", "float32", work),
            llama_cpp("f32", work),
            reading(rows, 4),
        ]
        sixteen_bits = [
            own("generate", "moyun, dtype=bfloat16", {**work, "dtype": "bfloat16"}),
            hugging_face("generate", "generate", {**work, "dtype": "bfloat16"}),
            llama_cpp("bf16", work),
            reading(rows, 2),
        ]
        eight_bits = [
            own("generate", "moyun, dtype=int8", {**work, "dtype": "int8"}),
            ctranslate2("generate", "int8", work),
            llama_cpp("q8_0", work),
            reading(rows, 1),
        ]
        formats = {"float32": plain, "bfloat16": sixteen_bits, "int8": eight_bits}
        for name, subjects in formats.items():
            words = "8 bits a weight" if name == "int8" else name
            yield Comparison(f"generation.{rows}.{name}", "generation", f"{title}, {words}", "tokens/s", subjects)


def ctranslate2(function: str, compute_type: str, options: dict[str, Any]) -> Subject:
    options = {**options, "compute_type": compute_type}
    return Subject(f"CTranslate2, {compute_type}", f"{PEERS}ctranslate2:{function}", options, ("ctranslate2",))


def llama_cpp(number_format: str, options: dict[str, Any]) -> Subject:
    options = {**options, "number_format": number_format}
    return Subject(f"llama.cpp {number_format}, its own server", f"{PEERS}llama_cpp:generate", options, LLAMA_CPP)


def reading(rows: int, bytes_per_weight: int) -> Subject:
    options = {"rows": rows, "bytes_per_weight": bytes_per_weight}
    return Subject("limit: every weight read once a token", "benchmarks.machine:reading", options)


def startup(config: BenchmarkConfig) -> Iterator[Comparison]:
    yield Comparison(
        "startup.token",
        "startup",
        "Start to first token of text",
        "s",
        [
            own("first_token", "moyun, pipelines.generate", {}),
            hugging_face("first_token", "generate", {}),
            ctranslate2("first_token", "float32", {}),
        ],
        higher_is_better=False,
    )
    section = config.training
    work = {"sequence_length": min(section.sequence_lengths), "batch_tokens": section.batch_tokens}
    subjects = [own("first_step", FINETUNE, work), hugging_face("first_step", "as run_clm goes", work)]
    yield Comparison("startup.step", "startup", "Start to the end of the first training step", "s", subjects, False)
    subjects = [own("help_text", "moyun, pipelines.generate --help", {})]
    yield Comparison("startup.help", "startup", "Start to the end of --help", "s", subjects, False)


def data(config: BenchmarkConfig) -> Iterator[Comparison]:
    tokenizing = partial(Subject, function="benchmarks.tokenizing:rate")
    subjects = [
        own("tokenizing", "moyun, character", {"kind": "character"}),
        own("tokenizing", "moyun, BERT vocabulary", {"kind": "bert"}),
        tokenizing("tokenizers, BERT vocabulary", options={"way": "tokenizers"}),
        tokenizing("Hugging Face, BertTokenizer", options={"way": "transformers"}, needs=("transformers",)),
        tokenizing("Hugging Face, datasets.map as in run_clm", options={"way": "map"}, needs=("transformers",)),
    ]
    yield Comparison("data.tokenizing", "data", "Rows of text to ids", "MB/s", subjects)


CURVES = {
    "sequence_lengths": ("tokens of one document", "training step"),
    "batches": ("documents of 32 tokens", "training step"),
    "sizes": ("model of 256 tokens", "training step"),
    "rows": ("rows of text", "file to batches"),
}
"""Keys of `scaling` → (what is varied, what is timed)."""


def scaling(config: BenchmarkConfig) -> Iterator[Comparison]:
    for curve, (axis, timed) in CURVES.items():
        points = getattr(config.scaling, curve)
        subject = own("growth", "moyun", {"curve": curve, "points": points, "steps": config.scaling.steps})
        yield Comparison(f"scaling.{curve}", "scaling", f"{timed} by {axis}", "s", [subject], False, once=True)


def mfu(config: BenchmarkConfig) -> Iterator[Comparison]:
    section, length = config.training, max(config.training.sequence_lengths)
    arguments = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", *section.arguments]
    work = {
        "sequence_length": length,
        "batch_tokens": section.batch_tokens,
        "steps": section.steps,
        "warmup": section.warmup_steps,
        "whole_documents": True,
    }
    subjects = [own("finetune", FINETUNE, {**work, "arguments": arguments})]
    title = f"Training on a GPU in bf16, documents of {length} tokens, {section.batch_tokens:,} tokens a step"
    note = partial(utilization, flops_per_token(config.model.__dict__, length / 2))
    yield Comparison("mfu", "mfu", title, "tokens/s", subjects, note=note)


def utilization(flops: float, medians: Medians) -> str:
    """Model FLOP/s ÷ the card's peak."""
    import torch

    name = torch.cuda.get_device_name()
    reached = medians[FINETUNE] * flops
    peak = gpu_peak(name)
    share = f"{reached / peak:.1%} of its {peak / 1e12:.0f}" if peak else "its peak isn't known here"
    return f"{reached / 1e12:.1f} TFLOP/s on {name}: {share} (MFU; causal attention counted once)."
