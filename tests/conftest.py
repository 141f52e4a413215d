"""What several tests share: a small random decoder, a tokenizer, real poems, a tracking store of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pytest
import torch

from modules.config import ModelConfig
from modules.decoder import Decoder
from modules.poetry import split_of
from modules.row_files import read_rows
from modules.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def poems() -> dict[str, list[str]]:
    """The 300 bundled test poems by split."""
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_rows(ROOT / "data" / "poems-300.jsonl.gz"):
        texts[split_of(row["src_txt"])].append(row["src_txt"])
    return texts


@pytest.fixture(scope="session")
def tokenizer(poems: dict[str, list[str]]) -> Tokenizer:
    return train_tokenizer(poems["train"])


@pytest.fixture(scope="session")
def rows(poems: dict[str, list[str]]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"src_txt": poems["train"]})


def make_config(vocab_size: int, **changes: Any) -> ModelConfig:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
    return ModelConfig(vocab_size=vocab_size, **(shape | changes))


@pytest.fixture
def decoder(tokenizer: Tokenizer) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size))


def make_decoder(config: ModelConfig, seed: int = 0, spread: float = 5.0) -> Decoder:
    """Random weights, spread out so that logits differ clearly and every part of the network matters."""
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed + 1))
    return decoder.eval()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder with a tracking store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
