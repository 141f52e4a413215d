"""Rows and ids kept on disk: found again by content alone, never trusted when damaged, bounded in memory."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config.data import DataConfig, TokenizerConfig
from modules.data.arrow import BATCH_ROWS, fingerprint, text_batches
from modules.data.datamodule import TextDataModule
from modules.data.encoding import ARRAYS, Documents, encode_rows, stored_documents
from modules.data.quarantine import DataError
from modules.data.rows import load_rows
from modules.data.splits import load_splits
from modules.system.cache import LEFT_OVER, CacheError, cached
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.training.setup import trained_on
from tests.helpers.examples import EncodedExample, encode_examples
from tests.helpers.models import ROOT

USUAL = st.sampled_from("白日依山尽，。a1 \n\u0301\u3000𠮷<|endoftext|>")
ODD = st.text(USUAL | st.characters(exclude_categories=["Cs"]), max_size=30)
PAIRS = st.lists(st.tuples(ODD, ODD), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *"白日依山尽，。、！ab1éかᄀ豈·々", "##a", "##b", "##日", "ab", "##1"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "configuration.json").write_text("{}")
    return load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["character", "bert"])
@given(texts=st.lists(ODD, min_size=1, max_size=8))
@settings(deadline=None)
def test_looking_ids_up_gives_what_the_tokenizer_gives(
    kind: str, texts: list[str], tokenizer: Tokenizer, bert: Tokenizer
) -> None:
    chosen = {"character": tokenizer, "bert": bert}[kind]
    ids, lengths = chosen.encode_flat(texts)
    expected = [encoding.ids for encoding in chosen._backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert [part.tolist() for part in np.split(ids, lengths.cumsum()[:-1])] == expected


def test_most_characters_of_bert_are_looked_up(bert: Tokenizer) -> None:
    assert bert._table is not None
    assert all(bert._table.table[ord(character)] >= 0 for character in "白日依山尽，。")
    assert all(bert._table.table[ord(character)] < 0 for character in "ab1か")  # they join their neighbours


@given(PAIRS, st.integers(6, 20), st.sampled_from(["src", "cut", "pair"]))
@settings(deadline=None)
def test_rows_are_laid_out_as_one_by_one(
    tokenizer: Tokenizer, pairs: list[tuple[str, str]], length: int, kind: str
) -> None:
    sources, targets = map(list, zip(*pairs, strict=True))
    columns = {"src_txt": sources} | ({"tgt_txt": targets} if kind == "pair" else {})
    chosen = tokenizer.with_prompt_template("问{src_txt}答" if kind == "pair" else None)
    documents = encode_rows(datasets.Dataset.from_dict(columns), chosen, length, "split" if kind == "src" else "cut")
    limit = None if kind == "src" else length + 1
    examples = encode_examples(chosen, sources, targets if kind == "pair" else None, limit)
    expected = [piece for example in examples for piece in pieces(example, length)]
    parts = np.split(documents.ids, documents.offsets[1:-1])
    assert [(part.tolist(), prompt) for part, prompt in zip(parts, documents.prompt_lengths, strict=True)] == expected
    assert documents.rows_cut == sum(example.cut for example in examples)
    assert documents.ended.tolist() == [ids[-1] == chosen.end_of_text_id for ids, _ in expected]


def pieces(example: EncodedExample, length: int) -> list[tuple[list[int], int]]:
    starts = range(0, max(1, len(example.ids) - 1), length)
    return [(example.ids[s : s + length + 1], 1 if s else example.prompt_length) for s in starts]


def same(one: Documents, other: Documents) -> bool:
    return all(
        getattr(one, name).dtype == getattr(other, name).dtype and (getattr(one, name) == getattr(other, name)).all()
        for name in ARRAYS
    )


def test_stored_documents_make_the_same_steps(tmp_path: Path, tokenizer: Tokenizer, rows: datasets.Dataset) -> None:
    stored = stored_documents(rows, tokenizer, 24, "split", tmp_path)
    plain = encode_rows(rows, tokenizer, 24, "split")
    assert isinstance(stored.ids, np.memmap)
    assert same(stored, plain)
    assert (stored.rows, stored.rows_cut, stored.rows_split) == (plain.rows, plain.rows_cut, plain.rows_split)
    config = DataConfig(sequence_length=24, over_long="split", cache_dir=str(tmp_path))
    module = TextDataModule({"train": rows, "validation": rows}, tokenizer, config, batch_tokens=300)
    steps = list(module.train_dataloader())
    module.documents["train"] = plain
    for step, expected in zip(steps, module.train_dataloader(), strict=True):
        for batch, wanted in zip(step.micro_batches, expected.micro_batches, strict=True):
            assert torch.equal(batch.input_ids, wanted.input_ids)
            assert torch.equal(batch.labels, wanted.labels)


def test_an_entry_is_found_by_content_alone(tmp_path: Path, tokenizer: Tokenizer, poems: dict[str, list[str]]) -> None:
    def entries() -> int:
        return len(list(tmp_path.glob("tokens-*")))

    texts = poems["train"][:20]
    first = datasets.Dataset.from_dict({"src_txt": texts})
    for rows, chosen, length in (
        (first, tokenizer, 24),
        (first, tokenizer, 25),
        (first, tokenizer.with_prompt_template("{src_txt}"), 24),
        (datasets.Dataset.from_dict({"src_txt": [*texts[:-1], "春"]}), tokenizer, 24),
    ):
        before = entries()
        stored_documents(rows, chosen, length, "cut", tmp_path)
        assert entries() == before + 1
    stored_documents(datasets.Dataset.from_dict({"src_txt": texts}), tokenizer, 24, "cut", tmp_path)
    assert entries() == before + 1


@pytest.mark.parametrize("damage", ["shorter", "changed", "absent", "no list"])
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, tokenizer: Tokenizer, rows: datasets.Dataset, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = encode_rows(rows, tokenizer, 24)
    stored_documents(rows, tokenizer, 24, "cut", tmp_path)
    (entry,) = tmp_path.glob("tokens-*")
    path = entry / ("files.json" if damage == "no list" else "ids.npy")
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage in ("shorter", "no list") else content[:-2] + b"xy")
    with caplog.at_level(logging.WARNING):
        assert same(stored_documents(rows, tokenizer, 24, "cut", tmp_path), expected)
    assert "is damaged" in caplog.text
    caplog.clear()
    stored_documents(rows, tokenizer, 24, "cut", tmp_path)
    assert not caplog.text


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(CacheError, match=r"can't be written \(disk full\).*data\.cache_dir=FOLDER"):
        cached(tmp_path, "x", {}, build)
    assert not list(tmp_path.glob("*x-*/"))


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path, rows: datasets.Dataset) -> None:
    (tmp_path / "taken").touch()
    for cache in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(CacheError, match=r"data\.cache_dir=FOLDER"):
            trained_on([(rows, 1.0)], TokenizerConfig(), cache)


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    """Not before: where there are no locks, or none between machines, another may be writing it."""
    name = cached(tmp_path, "x", {}, lambda folder: None).name
    (tmp_path / name / "files.json").unlink()
    fresh, old = tmp_path / f".{name}.a.partial", tmp_path / f".{name}.b.partial"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (0, time.time() - LEFT_OVER - 1))
    cached(tmp_path, "x", {}, lambda folder: None)
    assert fresh.exists()
    assert not old.exists()


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_processes_that_want_the_same_entry_build_it_once(tmp_path: Path, locks: bool) -> None:
    script = (
        "import fcntl, sys, time, pathlib\nfrom modules.system.cache import cached\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def none(*_): raise OSError('no locks')\n"
        f"if not {locks}: fcntl.flock = none\n"
        "def build(entry):\n    time.sleep(0.3)\n    (entry / 'a').write_text('content')\n"
        "    print('built')\n"
        "assert (cached(folder, 'x', {'n': 1}, build) / 'a').read_text() == 'content'\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    built = sorted(process.communicate()[0] for process in both)
    assert not locks or built == [b"", b"built\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_files_are_read_and_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    path.write_text('{"src_txt": "春"}\n{"src_txt": "秋"}\n')
    first = load_rows(path, cache=cache)
    assert first.to_list() == load_rows(path).to_list()
    with monkeypatch.context() as patch:
        patch.setattr("modules.data.rows.write_arrow", None)  # what a second reading would need
        assert fingerprint(load_rows(path, cache=cache)) == fingerprint(first)
    path.write_text('{"src_txt": "春"}\n{"src_txt": ""}\n')
    with pytest.raises(DataError, match="a.jsonl:2: src_txt is empty"):
        load_rows(path, cache=cache)
    assert len(list(cache.glob("rows-*"))) == 1
    assert load_rows(path, max_rows=1, cache=cache).to_list() == [{"src_txt": "春"}]
    with pytest.raises(DataError, match="no column 'tgt_txt'"):  # said each time, not only the first
        load_rows(path, {"tgt_txt": "tgt_txt"}, max_rows=1, cache=cache)


def test_a_column_that_comes_late_is_a_fault_of_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.data.rows._BATCH_ROWS", 2)
    path = tmp_path / "a.jsonl"
    written = [{"src_txt": "a"}] * 5 + [{"src_txt": "a", "tgt_txt": "b"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match="5 bad rows(.|\n)*a.jsonl:1: tgt_txt is missing"):
            load_rows(path, cache=cache)


def test_chosen_rows_come_in_order(tmp_path: Path) -> None:
    texts = [str(number) for number in range(3 * BATCH_ROWS)]
    rows = datasets.Dataset.from_dict({"src_txt": texts})
    for chosen in ([1, 5, BATCH_ROWS, 3 * BATCH_ROWS - 1], [7, 3, 2 * BATCH_ROWS]):
        got = [text for batch in text_batches(rows.select(chosen)) for text in batch["src_txt"]]
        assert got == [texts[number] for number in chosen]


def test_a_mapped_dataset_stays_on_disk(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"src_txt": ["春", "秋"]})
    saved.save_to_disk(tmp_path / "saved")
    rows = load_rows(datasets.load_from_disk(tmp_path / "saved"), cache=tmp_path / "cache")
    assert rows.to_list() == saved.to_list()
    assert rows.cache_files
    assert not list((tmp_path / "cache").iterdir())  # nothing says that these rows will come again


def test_a_trained_tokenizer_is_kept(tmp_path: Path, rows: datasets.Dataset) -> None:
    config = TokenizerConfig()
    first = trained_on([(rows, 1.0)], config, tmp_path)
    assert trained_on([(rows, 1.0)], config, tmp_path).fingerprint == first.fingerprint
    assert len(list(tmp_path.glob("tokenizer-*"))) == 1


def corpus_memory(folder: Path, rows: int) -> int:
    """The most bytes allocated at once on the way from a file to optimizer steps."""
    path = folder / f"{rows}.txt"
    path.write_text("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。\n" * rows)
    config = DataConfig(path=str(path), cache_dir=str(folder / "cache"), validation_fraction=0.01)
    tracemalloc.start()
    splits = load_splits(config, seed=0)
    tokenizer = trained_on([(splits["train"], 1.0)], TokenizerConfig(), folder / "cache")
    TextDataModule(splits, tokenizer, config, batch_tokens=8192)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    small, large = corpus_memory(tmp_path, 20_000), corpus_memory(tmp_path, 80_000)
    assert large - small < 60_000 * 40  # bytes a row: index arrays; a text of 24 characters alone takes 122


@pytest.mark.slow
def test_a_gigabyte_takes_little_memory_of_its_own(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "measure_corpus.py"
    done = subprocess.run([sys.executable, script, "1", tmp_path / "x"], capture_output=True, text=True, check=True)
    own = [float(line.partition("own")[2].split()[0]) for line in done.stdout.splitlines() if "own" in line]
    assert max(own) < 0.8
