"""predict as several tests call it, and the files that it reads and writes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from modules.config.loader import load_config
from modules.tokenizer.tokenizer import Tokenizer
from pipelines import pipeline
from pipelines.predict import PredictResult, predict
from tests.helpers.models import make_config, make_decoder, save_model

QUIET = ["tracking.log_system_metrics=false", "max_new_tokens=6", "model=model"]
TEXTS = ["白日依山尽", "春", "床前明月光，疑是地上霜。", "山", "处处闻啼鸟", "花落知多少，", "水", "夜来风雨声"]


FEW = ["source=rows.jsonl", "max_batch_tokens=30"]
"""Of many small batches."""


def small_model(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    return save_model(folder, make_decoder(make_config(tokenizer.vocab_size), seed=seed), tokenizer, {})


def run(*arguments: object) -> PredictResult:
    return predict(load_config("predict", [*QUIET, *map(str, arguments)]))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def alone(text: str, **parameters: Any) -> str:
    answer: str = pipeline(model="model")(text, max_new_tokens=6, top_p=0.9, seed=42, **parameters)["text"]
    return answer
