"""Damaged model folders and odd requests by the thousand: each gives what it should or an error of ours that names it.

python -m tests.workflow.fuzz [cases=2000] [seed=0] [what=folders|requests|all] [case=KIND:NUMBER]

A case is its kind and its number: the same one is the same damage wherever it runs. It counts as a fault if it ends
with another exception than ValueError (CheckpointError and ConfigError are such), takes over 10 s or 3 GB, kills the
process, or if a folder passes as sound that holds other weights. Faults are printed with the command that repeats
them, and kept in a folder. tests/workflow/test_fuzz.py runs the first of each kind.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed.checkpoint as dcp
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file, save_file

from modules.checkpoint import formats
from modules.checkpoint.adapter import read_adapter, save_adapter
from modules.checkpoint.loading import open_model, open_tokenizer, verified_hash, verify_model
from modules.checkpoint.model_folder import write_architecture
from modules.checkpoint.pickles import write_pickle
from modules.checkpoint.weights import StoredModel, stored, weights_hash, write_weights
from modules.config.model import LoraConfig
from modules.model.lora import add_lora
from modules.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from tests.helpers.damage import damage, request_body
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

SECONDS, BYTES = 10, 3_000_000_000
DATA = ROOT / "tests" / "files" / "modelscope"
PROMPT = "白日依山尽，"


# --- sound folders, one of each format ---


def make_folders(root: Path) -> None:
    tokenizer = train_tokenizer(["白日依山尽，黄河入海流。", "the quick brown fox"] * 3, vocab_size=300)
    decoder = make_decoder(make_config(tokenizer.vocab_size, hidden_size=16, max_position_embeddings=32))
    model = StoredModel(decoder.config, stored(decoder.state_dict()))
    save_model(root / "moyun", decoder, tokenizer, {"note": "春"})
    sharded = Path(shutil.copytree(root / "moyun", root / "moyun_shards"))
    (sharded / "model.safetensors").unlink()
    write_weights(sharded, load_file(root / "moyun" / "model.safetensors").items(), shard_bytes=10_000)
    golden = load_file(sharded / "golden.safetensors")
    hashes = {"weights": weights_hash(sharded), "tokenizer": tokenizer.fingerprint}
    save_file(golden, sharded / "golden.safetensors", metadata=hashes)
    for name in ("huggingface", "megatron"):
        (root / name).mkdir()
        formats.write(root / name, name, model, tokenizer)
    pickled = Path(shutil.copytree(root / "huggingface", root / "huggingface_bin"))
    tensors = formats.huggingface.read_tensors(root / "huggingface")  # type: ignore[attr-defined]
    (pickled / "model.safetensors").unlink()
    write_pickle(pickled / "pytorch_model.bin", {name: tensor.read() for name, tensor in tensors.items()})
    shutil.copytree(DATA / "base", root / "modelscope")
    shutil.copytree(DATA / "megatron_tp2", root / "megatron_tp2")
    (root / "run").mkdir()
    write_architecture(root / "run", decoder.config)
    tokenizer.save(root / "run")
    dcp.save(
        {"model": {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}},
        checkpoint_id=root / "run" / "step=1.ckpt",
        no_dist=True,
    )
    lora = LoraConfig(rank=2)
    add_lora(decoder, lora, seed=0)
    save_adapter(root / "adapter", dict(decoder.named_parameters()), decoder.config, lora, "0" * 64, tokenizer)


# --- what is expected ---


def read_folder(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """All that a folder holds, through every reader; ValueError for what is wrong."""
    if kind == "adapter":
        adapter = read_adapter(folder)
        return {name: tensor.read() for name, tensor in adapter.tensors.items()}, []
    place = folder / "step=1.ckpt" if kind == "run" else folder
    ids = open_tokenizer(place).encode(PROMPT)
    model = open_model(place)
    weights = {name: tensor.read() for name, tensor in model.weights.items()}
    verified_hash(place)
    return weights, ids


def check_folder(folder: Path, kind: str, sound: tuple[dict[str, torch.Tensor], list[int]]) -> str:
    """loaded, refused; AssertionError where a folder passes for sound that isn't."""
    try:
        weights, ids = read_folder(folder, kind)
        if kind.startswith("moyun"):
            verify_model(folder)
    except ValueError as error:
        return refused(str(error))
    if kind.startswith("moyun") or kind == "adapter":  # these know the hashes of what they hold
        assert ids == sound[1], "another tokenizer passed for sound"
        assert weights.keys() == sound[0].keys()
        for name, tensor in weights.items():
            assert torch.equal(tensor, sound[0][name]), f"other weights passed for sound: {name}"
    return "loaded"


def refused(message: str) -> str:
    assert message.strip(), "an error without a message, or that is none of the client's"
    return "refused"


def check_request(model: Any, body: Any) -> str:
    """answered, refused; anything else than texts and 400s is raised."""
    body = body if isinstance(body, dict) else {"inputs": body}
    inputs, params = body.get("inputs"), body.get("params")
    try:
        frame = pd.DataFrame(inputs) if isinstance(inputs, (dict, list)) else inputs
    except Exception:  # MLflow's own refusal, before predict
        frame = inputs
    try:
        answers = model.predict(None, frame, params if isinstance(params, dict) else None)
    except MlflowException as error:
        return refused(str(error) if error.error_code == "INVALID_PARAMETER_VALUE" else "")
    assert isinstance(answers, pd.DataFrame)
    assert all(isinstance(answer, str) for answer in answers["text"])
    return "answered"


# --- running ---


class Fuzzer:
    """Runs cases by kind and number."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.sound = root / "sound"
        self.case = root / "case"
        self.seed = seed
        if not self.sound.exists():
            self.sound.mkdir(parents=True)
            make_folders(self.sound)
        self.kinds = sorted(path.name for path in self.sound.iterdir())
        self.expected = {kind: read_folder(self.sound / kind, kind) for kind in self.kinds}
        self.model: Any = None

    def run(self, kind: str, number: int) -> tuple[str, str]:
        """(what was done, what came of it); raises what a case must not raise."""
        draw = random.Random(f"{self.seed} {kind} {number}")
        if kind == "requests":
            body = request_body(draw)
            return ascii(body)[:300], check_request(self.served(), body)
        shutil.rmtree(self.case, ignore_errors=True)
        shutil.copytree(self.sound / kind, self.case)
        done = damage(self.case, draw)
        self.done = done
        return done, check_folder(self.case, kind, self.expected[kind])

    def served(self) -> Any:
        if self.model is None:
            from modules.checkpoint.loading import load_for_inference
            from modules.inference.pyfunc import ServedModel
            from modules.inference.text_generator import TextGenerator

            folder = self.sound / "moyun"
            self.model = ServedModel()
            self.model.generator = TextGenerator(load_for_inference(folder), load_tokenizer(folder))
        return self.model


def work(root: Path, seed: int, cases: list[tuple[str, int]], results: Connection) -> None:
    """A process that runs cases until one ends it; each is announced before it runs."""
    torch.set_num_threads(1)
    fuzzer = Fuzzer(root, seed)
    fuzzer.served()
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
    signal.signal(signal.SIGALRM, too_long)
    for kind, number in cases:
        results.send(("starts", kind, number, ""))
        signal.alarm(SECONDS)
        try:
            _, outcome = fuzzer.run(kind, number)
        except BaseException as error:
            results.send(("fault", kind, number, f"{getattr(fuzzer, 'done', '')}\n{traceback.format_exc(limit=-6)}"))
            if isinstance(error, (KeyboardInterrupt, MemoryError)):
                return
        else:
            results.send((outcome, kind, number, ""))
        finally:
            signal.alarm(0)
    results.send(("end", "", 0, ""))


def too_long(*arguments: object) -> None:
    raise TimeoutError(f"over {SECONDS} s")


def run_all(root: Path, seed: int, cases: list[tuple[str, int]]) -> Iterator[tuple[str, str, int, str]]:
    """(outcome, kind, number, details) of each case; a process that dies is a fault of the case it was at."""
    context = multiprocessing.get_context("fork")
    left = list(cases)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(root, seed, left, sender))
        process.start()
        sender.close()
        ended = running = False
        while not ended:
            try:
                outcome, kind, number, details = receiver.recv()
            except EOFError:
                process.join()
                if running:
                    kind, number = left.pop(0)
                    yield "fault", kind, number, f"the process ended with {process.exitcode}"
                break
            ended, running = outcome == "end", outcome == "starts"
            if not ended and not running:
                left.pop(0)
                yield outcome, kind, number, details
        process.join()


def main(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore")
    options = {"cases": "2000", "seed": "0", "what": "all", "case": ""} | dict(a.split("=", 1) for a in arguments)
    root = Path(tempfile.mkdtemp(prefix="moyun-fuzz-"))
    kinds = Fuzzer(root, int(options["seed"])).kinds
    kinds = {"folders": kinds, "requests": ["requests"], "all": [*kinds, "requests"]}[options["what"]]
    cases = [(kinds[number % len(kinds)], number // len(kinds)) for number in range(int(options["cases"]))]
    if options["case"]:
        kind, _, number = options["case"].partition(":")
        cases = [(kind, int(number))]
    counts: Counter[tuple[str, str]] = Counter()
    for outcome, kind, number, details in run_all(root, int(options["seed"]), cases):
        counts[kind, outcome] += 1
        if outcome == "fault":
            print(f"\npython -m tests.workflow.fuzz seed={options['seed']} case={kind}:{number}\n{details}", flush=True)
    print(f"\n{'':18}{'loaded':>10}{'refused':>10}{'fault':>10}")
    for kind in kinds:
        good = counts[kind, "loaded"] + counts[kind, "answered"]
        print(f"{kind:18}{good:10}{counts[kind, 'refused']:10}{counts[kind, 'fault']:10}")
    faults = sum(count for (_, outcome), count in counts.items() if outcome == "fault")
    print(f"{sum(counts.values())} cases, {faults} faults")
    shutil.rmtree(root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
