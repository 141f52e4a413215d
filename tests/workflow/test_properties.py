"""What has to hold for any input, from the file to the micro-batch.

The same examples in every run; `make fuzz` (HYPOTHESIS_PROFILE=long) draws new ones, and many more of them.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modules.data.encoding import encode_rows
from modules.data.packing import make_step, plan_steps
from modules.data.quarantine import DataError, Quarantine
from modules.data.rows import load_rows
from modules.model.loss import IGNORED
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS).filter(lambda text: bool(text) and not text.isspace())
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)
NAME = st.text(CHARACTERS, min_size=1, max_size=6).filter(lambda name: name not in ("src_txt", "tgt_txt"))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part), max_leaves=3
)


def written(folder: str, name: str, content: str) -> Path:
    path = Path(folder) / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


@given(PAIRS, st.lists(NAME, min_size=3, max_size=3, unique=True), st.sampled_from(["a.csv", "a.tsv", "a.jsonl"]))
def test_any_column_can_be_mapped_to_either_text(pairs: list[tuple[str, str]], names: list[str], file: str) -> None:
    source, target, other = names
    assume(not (file != "a.jsonl" and names[0].startswith("\ufeff")))  # the file's byte order mark, there
    rows = [{source: first, other: "1", target: second} for first, second in pairs]
    text = io.StringIO(newline="")
    if file == "a.jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, [source, other, target], delimiter="\t" if file == "a.tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, file, text.getvalue())
        found = load_rows(path, {source: "src_txt", target: "tgt_txt"})
        assert found.to_list() == [{"src_txt": first, "tgt_txt": second} for first, second in pairs]
        assert load_rows(path, {target: "src_txt"}).to_list() == [{"src_txt": second} for _, second in pairs]


@given(st.lists(st.one_of(TEXT, JUNK), max_size=12), st.booleans())
def test_quarantine_takes_the_bad_rows_and_leaves_the_others_in_order(values: list[Any], cached: bool) -> None:
    good = [value for value in values if isinstance(value, str) and value and not value.isspace()]
    good = [value for value in good if value.encode("utf-8", "ignore").decode() == value]  # no half surrogate pair
    lines = "".join(json.dumps({"src_txt": value}) + "\n" for value in values)
    quarantine = Quarantine(0.999)
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, "a.jsonl", lines)
        cache = Path(folder) / "cache" if cached else None
        if not good:
            with pytest.raises(DataError):
                load_rows(path, cache=cache, quarantine=quarantine)
            return
        assert load_rows(path, cache=cache, quarantine=quarantine)["src_txt"][:] == good
        assert len(quarantine.rows) == len(values) - len(good)
        bad = [row["line"] for row in quarantine.rows]
        assert [value for line, value in enumerate(values, 1) if line not in bad] == good
        if bad:
            with pytest.raises(DataError, match=f"{len(bad)} bad row"):
                load_rows(path)


@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "json", "jsonl", "txt", "csv.gz", "parquet"]))
def test_bytes_of_any_kind_are_read_or_refused_by_name(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(content)
        for quarantine in (None, Quarantine(0.9)):
            try:
                found = load_rows(path, quarantine=quarantine)
            except DataError as error:
                named = str(path) in str(error)
            else:
                named = all(isinstance(text, str) and text and not text.isspace() for text in found["src_txt"])
            assert named


@pytest.fixture(scope="module", params=["character", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(["白日依山尽，黄河入海流。", "the quick brown fox"] * 3, request.param, vocab_size=330)


@given(PAIRS, st.booleans(), st.integers(8, 40), st.integers(1, 4), st.integers(1, 60), st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_trains_on_every_token_once_whatever_the_ranks(
    tokenizer: Tokenizer, pairs: list[tuple[str, str]], task: bool, length: int, ranks: int, tokens: int, seed: int
) -> None:
    columns = {"src_txt": [first for first, _ in pairs]} | ({"tgt_txt": [last for _, last in pairs]} if task else {})
    if task:
        tokenizer = tokenizer.with_prompt_template("问{src_txt}答")
        length += tokenizer.smallest_limit(pairs=True)
    documents = encode_rows(load_rows(columns), tokenizer, length, "split")
    order = np.random.default_rng(seed).permutation(len(documents))
    trained: list[list[int]] = []
    for chosen in plan_steps(documents.lengths, order, None, tokens):
        shares = [make_step(documents, chosen, tokens, rank, ranks) for rank in range(ranks)]
        assert len({len(share.micro_batches) for share in shares}) == 1
        batches = [batch for share in shares for batch in share.micro_batches]
        assert {share.trained_tokens for share in shares} == {sum(batch.trained_tokens for batch in batches)}
        for batch in batches:
            assert batch.input_ids.shape == batch.labels.shape == (1, sum(batch.layout.lengths))
            assert len(batch.layout.lengths) == 1 or sum(batch.layout.lengths) <= tokens
            labels = batch.labels[0].split(batch.layout.lengths)
            trained += [kept for part in labels if (kept := part[part != IGNORED].tolist())]
    expected = []
    for index in range(len(documents)):
        ids = documents.ids[documents.offsets[index] : documents.offsets[index + 1]].tolist()
        expected.append(ids[documents.prompt_lengths[index] :])
    assert sorted(trained) == sorted(expected)
    if not task:  # which is all of the text, and every end
        spelt = sorted(tokenizer.decode(tokenizer.encode(text)) for text in columns["src_txt"])
        assert spelt == sorted(columns["src_txt"])
        assert sum(map(len, trained)) == sum(len(tokenizer.encode(text)) + 1 for text in columns["src_txt"])
