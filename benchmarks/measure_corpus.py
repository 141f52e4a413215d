"""Memory and time that a corpus of any size takes to become optimizer steps: generated text, read cold, then warm.

python -m benchmarks.measure_corpus GIGABYTES FOLDER [PART]
needs 3 times the size free in FOLDER. PART makes one thing alone: text, cold, warm; by default all, each in a
process of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

ROWS_AT_ONCE = 10_000
POEMS_A_ROW = 10


def generate(path: Path, gigabytes: float) -> None:
    """Rows of ten bundled poems each, about 1.8 KB, drawn at random."""
    from modules.data.corpora.folders import SAMPLE
    from modules.system.jsonl import read_jsonl

    poems = [row["src_txt"].encode() for row in read_jsonl(SAMPLE)]
    draw = random.Random(1)
    size = 0
    with path.open("wb") as stream:
        while size < gigabytes * 1e9:
            chosen = draw.choices(poems, k=ROWS_AT_ONCE * POEMS_A_ROW)
            rows = (b"".join(chosen[start : start + POEMS_A_ROW]) for start in range(0, len(chosen), POEMS_A_ROW))
            size += stream.write(b"".join(b'{"src_txt": "' + row + b'"}\n' for row in rows))


class Watch:
    """Peak memory of this process: its own, and with the files mapped into it, which the system takes back at need."""

    def __init__(self) -> None:
        self.own = self.all = 0.0
        self.start = time.perf_counter()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while True:
            lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
            self.own = max(self.own, int(lines["RssAnon"].split()[0]) / 2**20)
            self.all = max(self.all, int(lines["VmRSS"].split()[0]) / 2**20)
            time.sleep(0.05)

    def say(self, what: str) -> None:
        seconds = time.perf_counter() - self.start
        print(
            f"  {what:<28}{seconds:7.1f} s   own {self.own:5.2f} GiB   with mapped files {self.all:5.2f} GiB",
            flush=True,
        )


def measure(text: Path, cache: Path) -> None:
    import torch  # noqa: F401  # so that it isn't counted as the corpus's

    from modules.config.data import DataConfig, TokenizerConfig
    from modules.data.datamodule import TextDataModule
    from modules.data.splits import load_splits
    from modules.training.fit import trained_on

    watch = Watch()
    watch.say("imports")
    config = DataConfig(path=str(text), cache_dir=str(cache), over_long="split", validation_fraction=0.001)
    splits = load_splits(config, seed=0)
    watch.say("rows")
    tokenizer = trained_on([(splits["train"], 1.0)], TokenizerConfig(), cache)
    watch.say("tokenizer")
    data = TextDataModule(splits, tokenizer, config, batch_tokens=8192)
    watch.say("tokens")
    steps = iter(data.train_dataloader())
    next(steps)
    watch.say("first step")
    for _, step in zip(range(1000), steps, strict=False):
        assert step.trained_tokens
    watch.say("1,000 steps more")
    documents = data.documents["train"]
    print(f"  {len(splits['train']):,} rows, {len(documents):,} documents, {int(documents.offsets[-1]):,} ids")


if __name__ == "__main__":
    gigabytes, folder = float(sys.argv[1]), Path(sys.argv[2])
    text = folder / "corpus.jsonl"
    if len(sys.argv) > 3:
        generate(text, gigabytes) if sys.argv[3] == "text" else measure(text, folder / "cache")
    else:
        folder.mkdir(parents=True)
        for part in ("text", "cold", "warm"):
            print(part, flush=True)
            subprocess.run([sys.executable, __file__, sys.argv[1], str(folder), part], check=True)
