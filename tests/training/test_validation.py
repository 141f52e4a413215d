"""The stop-learning gauge: right against plain logits, and it tells a model that stops from one that doesn't."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F

from modules.model.linear import CHUNK
from modules.model.loss import IGNORED, linear_cross_entropy, stopping_cross_entropy
from modules.tokenizer.tokenizer import Tokenizer
from tests.training.test_lightning_module import fit, short_training

END = 3


def test_the_gauge_is_that_of_the_whole_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * CHUNK + 17
    hidden = torch.randn(1, tokens, 32, generator=generator)
    weight = torch.randn(20, 32, generator=generator)
    weight[END] *= 2  # often the likeliest
    labels = torch.randint(0, 20, (1, tokens), generator=generator)
    labels[0, ::5] = END
    labels[0, ::7] = IGNORED
    nll, end_nll, found, early = stopping_cross_entropy(hidden, weight, labels, END).tolist()
    logits, targets = (hidden @ weight.T)[0], labels[0]
    ends, others = targets == END, (targets != END) & (targets != IGNORED)
    stops = logits.argmax(-1) == END
    assert nll == float(linear_cross_entropy(hidden, weight, labels))  # the loss that is trained on, to the last bit
    assert end_nll == pytest.approx(float(F.cross_entropy(logits[ends], targets[ends], reduction="sum")), rel=1e-5)
    assert (found, early) == (int((stops & ends).sum()), int((stops & others).sum()))
    assert min(found, early) > 10


def test_a_model_that_has_learnt_to_stop_shows_it(tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path) -> None:
    lines = datasets.Dataset.from_dict({"src_txt": [text[:5] + "。" for text in rows["src_txt"]]})
    before, after = (
        fit(*short_training(tokenizer, lines, learning_rate=rate), 30, tmp_path).rows[-1] for rate in (1e-9, 1e-2)
    )
    assert before["val/end_of_text_found"] == 0.0
    assert after["val/end_of_text_found"] == 1.0
    assert after["val/end_of_text_early"] == 0.0
    assert after["val/end_of_text_nll"] < 0.5 < 5 < before["val/end_of_text_nll"]
