"""What EleutherAI's lm-evaluation-harness computes of a Hugging Face export is what pipelines.evaluate computes.

Its `hf` model takes the export as it is (docs/tasks.md has the command). The harness is no requirement here, so its
arithmetic is done with transformers alone: context and continuation are encoded together, the context's ids are counted
off, and the logits of what is left are summed (lm_eval/api/model.py `_encode_pair`, models/huggingface.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from modules.checkpoint.formats import huggingface
from modules.checkpoint.loading import open_model
from modules.evaluation.likelihood import choice_accuracy, choice_documents, encode_question, score_documents
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder, save_model

QUESTIONS = [
    ("白日依山尽，", ["黄河入海流。", "春", "the fox"]),
    ("处处闻啼鸟。问：", ["花落知多少", "千里目", "<|endoftext|>"]),
]
ANSWERS = ["0", "1"]


@pytest.fixture
def exported(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """transformers' own tokenizer and model."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = save_model(tmp_path / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    huggingface.write(tmp_path / "export", open_model(folder), tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    return transformers.AutoTokenizer.from_pretrained(tmp_path / "export"), model.eval()


def loglikelihood(exported: tuple[Any, Any], context: str, continuation: str) -> float:
    tokenizer, model = exported
    whole, first = tokenizer.encode(context + continuation), tokenizer.encode(context)
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(len(first), len(whole)))


def test_the_loglikelihood_of_an_export_is_ours(exported: tuple[Any, Any], tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    encoded = [encode_question(source, choices, tokenizer, 96) for source, choices in QUESTIONS]
    ours = -score_documents(decoder, choice_documents(encoded))
    theirs = [loglikelihood(exported, source, choice) for source, choices in QUESTIONS for choice in choices]
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-4)
    assert len(set(theirs)) == len(theirs)

    rows = {"src_txt": [source for source, _ in QUESTIONS], "answer": ANSWERS}
    listed = datasets.Dataset.from_dict(rows | {"choices": [repr(c).replace("'", '"') for _, c in QUESTIONS]})
    (total, per_character), _ = choice_accuracy(decoder, tokenizer, listed)
    for row, ((_, choices), answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        found = theirs[3 * row : 3 * row + 3]
        mean = [value / len(choice) for value, choice in zip(found, choices, strict=True)]
        assert total.of_rows()[row] == (found.index(max(found)) == int(answer))
        assert per_character.of_rows()[row] == (mean.index(max(mean)) == int(answer))
