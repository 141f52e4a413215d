"""What everybody works on: the bundled poems as rows, as ids, and a model of random weights in several formats.

Made once, before anything is measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """Plain values alone: it goes to each turn as JSON."""

    folder: str
    model: dict[str, Any]
    """Names and values of a SizeConfig."""
    seed: int
    threads: int

    def path(self, name: str) -> Path:
        """rows.jsonl, validation.jsonl, ids.npz, tokenizer/, model.yaml, model/, huggingface/, mlflow.db."""
        return Path(self.folder, name)

    def texts(self) -> list[str]:
        with self.path("rows.jsonl").open(encoding="utf-8") as stream:
            return [json.loads(line)["src_txt"] for line in stream]

    def documents(self, sequence_length: int, minimum: int = 0) -> list[np.ndarray]:
        """Ids (n,) int64 of each row, in moyun's own shuffled order, cut to sequence_length + 1.

        Rows come again, reshuffled, until there are at least `minimum` tokens to train on.
        """
        with np.load(self.path("ids.npz")) as arrays:
            ids, offsets = arrays["ids"], arrays["offsets"]
        chosen: list[np.ndarray] = []
        epoch = tokens = 0
        while not chosen or tokens < minimum:
            for index in np.random.default_rng((self.seed, epoch)).permutation(len(offsets) - 1):
                document = ids[offsets[index] : offsets[index + 1]][: sequence_length + 1].astype(np.int64)
                chosen.append(document)
                tokens += len(document) - 1
            epoch += 1
        return chosen

    def blocks(self, sequence_length: int, count: int) -> np.ndarray:
        """Documents laid end to end and cut: (count, sequence_length + 1) int64, as GPT-style packing has it."""
        width = sequence_length + 1
        flat = np.concatenate(self.documents(sequence_length, minimum=count * width))
        return flat[: count * width].reshape(count, width)

    def rows_of(self, sequence_length: int, batch_tokens: int, steps: int) -> Iterator[list[np.ndarray]]:
        """Documents of each of so many steps, about batch_tokens trained tokens in each."""
        documents = iter(self.documents(sequence_length, minimum=(steps + 1) * batch_tokens))
        trained = 0
        for number in range(1, steps + 1):
            step: list[np.ndarray] = []
            while trained < number * batch_tokens or not step:
                step.append(next(documents))
                trained += len(step[-1]) - 1
            yield step

    def prompts(self, rows: int, tokens: int) -> tuple[list[str], list[list[int]]]:
        """(texts, ids) of so many prompts, each of exactly so many tokens."""
        from modules.tokenizer.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.path("tokenizer"))
        start = len(tokenizer.encode_prompt(""))
        flat = "".join(c for text in self.texts() for c in text if len(tokenizer.encode(c)) == 1)
        length = tokens - start
        texts = [flat[row * length : (row + 1) * length] for row in range(rows)]
        return texts, [tokenizer.encode_prompt(text) for text in texts]


def make_work(folder: Path, model: Any, seed: int, threads: int) -> Work:
    """Rows, ids and tokenizer; `model` is a SizeConfig. ValueError where its vocabulary is too small for the rows."""
    from datasets import Dataset
    from mlflow import MlflowClient

    from modules.config.loader import to_yaml
    from modules.data.corpora.folders import SAMPLE
    from modules.data.corpora.verse import split_of
    from modules.data.encoding import encode_rows
    from modules.system.jsonl import read_jsonl
    from modules.tokenizer.tokenizer import train_tokenizer

    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(SAMPLE):
        texts[split_of(row["src_txt"])].append(row["src_txt"])
    write_texts(folder / "rows.jsonl", texts["train"])
    write_texts(folder / "validation.jsonl", texts["validation"][:16])
    tokenizer = train_tokenizer(texts["train"])
    if (model.vocab_size or 0) < tokenizer.vocab_size:
        raise ValueError(f"model.vocab_size={model.vocab_size}: the bundled poems need {tokenizer.vocab_size:,} ids")
    tokenizer.save(folder / "tokenizer")
    rows = Dataset.from_dict({"src_txt": texts["train"]})
    documents = encode_rows(rows, tokenizer, sequence_length=max(map(len, texts["train"])) * 4 + 1)  # none is cut
    np.savez(folder / "ids.npz", ids=documents.ids.astype(np.int32), offsets=documents.offsets)
    (folder / "model.yaml").write_text(to_yaml(model), encoding="utf-8")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()  # laying out the tables takes seconds
    return Work(str(folder), asdict(model), seed, threads)


def write_texts(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"src_txt": text}, ensure_ascii=False) + "\n" for text in texts)


def write_models(work: Work) -> None:
    """Random weights as a model folder of moyun's and in Hugging Face's layout."""
    from modules.checkpoint import formats
    from modules.checkpoint.model_folder import read_model, write_model
    from modules.config.model import ModelConfig
    from modules.model.decoder import fresh_tensors
    from modules.tokenizer.tokenizer import load_tokenizer

    names = ModelConfig.__dataclass_fields__
    config = ModelConfig(**{name: value for name, value in work.model.items() if name in names})
    tokenizer = load_tokenizer(work.path("tokenizer"))

    def silenced() -> Iterator[tuple[str, Any]]:
        for name, tensor in fresh_tensors(config, work.seed):
            if name == "word_embeddings.weight":
                tensor[tokenizer.end_of_text_id] = 0  # its logit is never the largest: every answer has full length
            yield name, tensor

    write_model(work.path("model"), config, silenced(), tokenizer, {})
    work.path("huggingface").mkdir()
    formats.write(work.path("huggingface"), "huggingface", read_model(work.path("model")), tokenizer)
