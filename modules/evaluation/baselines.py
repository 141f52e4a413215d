"""What a score is compared with that needs no model: trivial answers, and character n-grams as a floor.

The n-grams are interpolated with absolute discounting:

    p_k(c | h) = (max(n(h c) - d, 0) + d * types(h) * p_{k-1}(c | h')) / n(h)        for k = 1 … order

where n counts occurrences in the training texts, types(h) is the number of distinct symbols seen after the
history h, and h' is h without its oldest symbol; a history never seen backs off whole (Ney, Essen & Kneser,
1994, with raw counts at every order). p_0 is uniform over the known characters, the end of text and one
out-of-vocabulary symbol that stands for every character not seen in training; so its probability is what
discounting leaves to p_0, the same for whichever unseen character comes, and the whole sums to one. Which one it is
isn't foretold: scores charge for that as for what a tokenizer loses (tokenizer/lost_text.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray

from ..config.evaluation import NGRAMS
from ..data.conversations.message_rows import conversations_of
from ..data.splits import texts_alone
from ..tokenizer.lookup import CODE_POINTS, code_points
from ..tokenizer.lost_text import NATS_A_BYTE
from ..tokenizer.prompt_template import fill_template, with_system
from ..tokenizer.tokenizer import Tokenizer
from .statistics import Metric, perplexity
from .task_rows import TaskRow, first_sentence


def ngram_floor(train: datasets.Dataset, test: datasets.Dataset, tokenizer: Tokenizer) -> dict[str, Metric]:
    """{"unigram": …, "bigram": …, "trigram": …}: fitted on train, scored on the same part of test as the model."""
    texts, starts, owners = zip(*scored_texts(test, tokenizer), strict=True)
    return ngram_floors((text for text, _, _ in scored_texts(train, tokenizer)), texts, starts, owners)


def scored_texts(rows: datasets.Dataset, tokenizer: Tokenizer) -> Iterator[tuple[str, int, int]]:
    """(the whole text of a row or turn, where the scored part starts, the row's number).

    A turn stands for itself: n-grams see no further back than its prompt.
    """
    if "tgt_txt" not in rows.column_names:
        yield from ((text, 0, row) for row, text in enumerate(rows["src_txt"]))
        return
    for row, messages in enumerate(conversations_of(texts_alone(rows))):
        said = [text for _, text in with_system(messages)]
        for source, target in zip(said[::2], said[1::2], strict=True):
            prompt = fill_template(tokenizer.prompt_template, source)
            yield prompt + target, len(prompt), row


START, END, UNKNOWN, FIRST_CHARACTER = 0, 1, 2, 3
HIGHEST_ORDER = len(NGRAMS)

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class _Counts(NamedTuple):
    """What one order has seen; histories and n-grams are numbers in base (symbols), sorted."""

    ngrams: Ids
    occurrences: Ids
    histories: Ids
    history_occurrences: Ids
    history_types: Ids


class NgramModel:
    """Character n-gram model of order 1 to 3; see the module's text for the formula.

    Raises ValueError for an order out of that range or a discount outside (0, 1).
    """

    def __init__(self, order: int, discount: float = 0.75) -> None:
        if not 1 <= order <= HIGHEST_ORDER:
            raise ValueError(f"order ({order}) must be 1 to {HIGHEST_ORDER}")
        if not 0 < discount < 1:
            raise ValueError(f"discount ({discount}) must lie between 0 and 1, both excluded; try 0.75")
        self.order, self.discount = order, discount
        self.characters: list[str] = []
        self._symbol_of_code_point: Ids = np.full(CODE_POINTS, UNKNOWN, dtype=np.int64)
        self._counts: list[_Counts] = []

    @property
    def symbols(self) -> int:
        """How many symbols can be predicted: the known characters, the end of text and UNKNOWN."""
        return len(self.characters) + 2

    def fit(self, texts: Iterable[str]) -> NgramModel:
        """Count the n-grams of `texts`, forgetting any earlier fit; returns the model itself."""
        rows = list(texts)
        if not rows:
            raise ValueError("an n-gram model needs at least one training text; the set given is empty")
        known = np.unique(code_points(rows))
        self.characters = [chr(code) for code in known.tolist()]
        self._symbol_of_code_point = np.full(CODE_POINTS, UNKNOWN, dtype=np.int64)
        self._symbol_of_code_point[known] = np.arange(FIRST_CHARACTER, FIRST_CHARACTER + len(known))
        sequence, positions = self._lay_out(rows)
        self._counts = [self._count(sequence, positions, order) for order in range(1, self.order + 1)]
        return self

    def row_losses(self, texts: Iterable[str], starts: Iterable[int] | None = None) -> Floats:
        """What predicting each text and its end costs, in nats, (rows,); with `starts`, from those indices on."""
        rows = list(texts)
        sequence, positions = self._lay_out(rows)
        losses = -np.log(self._probabilities(sequence, positions))
        sizes = np.array([len(text) + 1 for text in rows], dtype=np.int64)
        row = np.arange(len(rows)).repeat(sizes)
        if starts is not None:
            first = np.fromiter(starts, np.int64, len(rows))
            if len(bad := np.flatnonzero((first < 0) | (first >= sizes))):
                raise ValueError(f"row {bad[0]}: start {first[bad[0]]} isn't within {sizes[bad[0]] - 1} characters")
            losses[np.arange(len(row)) < (np.cumsum(sizes) - sizes + first)[row]] = 0.0
        return np.bincount(row, losses, len(rows)).astype(np.float64)

    def unseen_bytes(self, texts: Iterable[str], starts: Iterable[int]) -> Floats:
        """(texts,): UTF-8 bytes of each text's characters, from its start on, that never stood in a training text."""
        known = set(self.characters)
        unseen = ([c for c in text[start:] if c not in known] for text, start in zip(texts, starts, strict=True))
        return np.array([len("".join(characters).encode()) for characters in unseen], np.float64)

    def _lay_out(self, texts: list[str]) -> tuple[Ids, Ids]:
        """All texts as one sequence of symbols, each text after order-1 STARTs, and the places to predict."""
        lead = self.order - 1
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        ends = np.cumsum(lengths + lead + 1) - 1
        sequence = np.full(int(ends[-1]) + 1 if len(texts) else 0, START, dtype=np.int64)
        sequence[ends] = END
        text_starts = ends - lengths
        shift = np.repeat(text_starts - (np.cumsum(lengths) - lengths), lengths)
        sequence[np.arange(int(lengths.sum())) + shift] = self._symbol_of_code_point[code_points(texts)]
        return sequence, np.flatnonzero(sequence != START)

    def _ngrams(self, sequence: Ids, positions: Ids, order: int) -> Ids:
        """The n-gram that ends at each position, as a number; without its last symbol it is // (symbols + 1)."""
        ngrams = np.zeros(len(positions), dtype=np.int64)
        for back in range(order - 1, -1, -1):  # in place: there may be tens of millions
            ngrams *= self.symbols + 1
            ngrams += sequence[positions - back]
        return ngrams

    def _count(self, sequence: Ids, positions: Ids, order: int) -> _Counts:
        keys = self._ngrams(sequence, positions, order)
        keys.sort()
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        ngrams, occurrences = keys[begins], np.diff(begins, append=len(keys))
        histories, first, types = np.unique(ngrams // (self.symbols + 1), return_index=True, return_counts=True)
        return _Counts(ngrams, occurrences, histories, np.add.reduceat(occurrences, first), types)

    def _probabilities(self, sequence: Ids, positions: Ids) -> Floats:
        """Probability of the symbol at each position given the symbols before it."""
        if not self._counts:
            raise ValueError("this n-gram model has no counts yet: call fit(texts) first")
        probability = np.full(len(positions), 1 / self.symbols)
        for order, counts in enumerate(self._counts, start=1):
            ngram = self._ngrams(sequence, positions, order)
            history = ngram // (self.symbols + 1)
            seen = _look_up(counts.ngrams, counts.occurrences, ngram)
            total = _look_up(counts.histories, counts.history_occurrences, history)
            types = _look_up(counts.histories, counts.history_types, history)
            mass = np.maximum(seen - self.discount, 0) + self.discount * types * probability
            probability = np.where(total > 0, mass / np.maximum(total, 1), probability)
        return probability


def ngram_floors(
    train_texts: Iterable[str],
    test_texts: Iterable[str],
    starts: Iterable[int] | None = None,
    owners: Sequence[int] | None = None,
) -> dict[str, Metric]:
    """{"unigram": …, "bigram": …, "trigram": …}: perplexity per character on `test_texts` (from `starts` on).

    owners: the number of the row that each text is of; unset: each is a row.
    """
    train, test = list(train_texts), list(test_texts)
    begin = [0] * len(test) if starts is None else list(starts)
    predictions = np.array([len(text) - start + 1 for text, start in zip(test, begin, strict=True)])
    of_rows = partial(np.bincount, range(len(test)) if owners is None else owners)
    models = {name: NgramModel(order).fit(train) for order, name in enumerate(NGRAMS, start=1)}
    charged = models[NGRAMS[0]].unseen_bytes(test, begin) * NATS_A_BYTE
    return {
        name: perplexity("perplexity_per_char", of_rows(model.row_losses(test, begin) + charged), of_rows(predictions))
        for name, model in models.items()
    }


def _look_up(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """values[i] where keys[i] is wanted, 0 where no key is; keys sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


NEEDS_TRAINING_ROWS = ("most_frequent", "nearest")


def trivial_answers(name: str, rows: Sequence[TaskRow], train: datasets.Dataset | None) -> list[str]:
    """One a row, by the names of task.trivial. ValueError for one that needs training rows where there are none."""
    if name == "reference":
        return [row.references[0] for row in rows]
    if name == "lead":
        return [first_sentence(row.source) for row in rows]
    if name == "copy":
        return [row.source for row in rows]
    if train is None or "tgt_txt" not in train.column_names:
        raise ValueError(f"the baseline {name} needs training rows with tgt_txt (data.path)")
    if name == "most_frequent":
        ((target, _),) = Counter(train["tgt_txt"]).most_common(1)
        return [target] * len(rows)
    targets = train["tgt_txt"]
    return [targets[index] for index in nearest([row.source for row in rows], list(train["src_txt"]))]


def nearest(sources: Sequence[str], others: Sequence[str]) -> list[int]:
    """For each source the number of the other text whose characters it shares most (Jaccard, as sets; first of equals).

    By an index of characters: 500 sources among a million texts of 20 characters take seconds, and 0.5 GB.
    """
    lengths = np.fromiter(map(len, others), np.int64, len(others))
    keys = code_points(others).astype(np.int64) * len(others) + np.arange(len(others)).repeat(lengths)
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]  # each character of a text once
    holders = keys % len(others)
    sizes = np.bincount(holders, minlength=len(others))
    best = []
    for source in sources:
        letters = np.array([ord(letter) for letter in set(source)], np.int64)
        begins, ends = np.searchsorted(keys, letters * len(others)), np.searchsorted(keys, (letters + 1) * len(others))
        found = [holders[begin:end] for begin, end in zip(begins, ends, strict=True)]
        shared = np.bincount(np.concatenate(found), minlength=len(others)) if found else np.zeros(len(others))
        best.append(int(np.argmax(shared / np.maximum(1, len(letters) + sizes - shared))))
    return best
