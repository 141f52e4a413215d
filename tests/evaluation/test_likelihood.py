"""Scores against counting by hand; what is never registered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F

from modules.checkpoint.loading import require_finite
from modules.evaluation.baselines import NgramModel, ngram_floor
from modules.evaluation.likelihood import Question, choice_accuracy, choice_documents, score, score_documents
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder, save_model


def by_hand(decoder: Decoder, ids: list[int], scored_from: int) -> float:
    with torch.no_grad():
        logits = decoder(torch.tensor([ids[:-1]]))[0]
    labels = torch.tensor(ids[1:])
    return float(F.cross_entropy(logits[scored_from - 1 :], labels[scored_from - 1 :], reduction="sum"))


def test_plain_rows_count_every_character_and_every_end(decoder: Decoder, tokenizer: Tokenizer) -> None:
    texts = ["白日依山尽，", "春", "山" * 40]
    nll = [by_hand(decoder, [0, *tokenizer.encode(text), 0], 1) for text in texts]
    found = score(decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": texts}), max_batch_tokens=20)
    assert (found.rows_cut, found.tokens.tolist(), found.characters.tolist()) == (0, [7, 2, 41], [7, 2, 41])
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(sum(nll) / 50), rel=1e-5)
    assert found.perplexity_per_char.value == found.perplexity.value


def test_of_pairs_only_the_target_and_its_end_count(decoder: Decoder, tokenizer: Tokenizer) -> None:
    task = tokenizer.with_prompt_template("{src_txt}\n")
    rows = datasets.Dataset.from_dict({"src_txt": ["白日"], "tgt_txt": ["黄河入海"]})
    prompt = [0, *tokenizer.encode("白日"), *tokenizer.encode("\n")]
    nll = by_hand(decoder, [*prompt, *tokenizer.encode("黄河入海"), 0], len(prompt))
    found = score(decoder, task, rows)
    assert found.perplexity_per_char.value == pytest.approx(math.exp(nll / (4 + 1)), rel=1e-5)


def test_a_text_longer_than_the_model_is_scored_whole_and_is_one_row(tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=16))
    texts = ["日", "山" * 50, "水"]
    found = score(decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": texts}))
    assert (found.tokens.tolist(), found.rows_cut) == ([2, 51, 2], 0)
    ids = [0, *tokenizer.encode(texts[1]), 0]
    pieces = [ids[0:17], ids[16:33], ids[32:49], ids[48:]]
    assert found.nll[1] == pytest.approx(sum(by_hand(decoder, piece, 1) for piece in pieces), rel=1e-5)
    assert found.nll[2] == pytest.approx(by_hand(decoder, [0, *tokenizer.encode("水"), 0], 1), rel=1e-5)


@pytest.mark.parametrize("most", [400, 8192])
def test_what_prompts_have_in_common_is_read_once(decoder: Decoder, tokenizer: Tokenizer, most: int) -> None:
    """Choices of a question, pairs with the same examples, and a prompt that is another's beginning."""
    examples = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 2
    prompts = [examples + own for own in ("春眠不觉晓，", "山", "", "床前明月光，疑是地上霜。", examples[:20])]
    choices = ["处处闻啼鸟", "山", "花落知多少", "春", "日"]
    questions: list[Question] = [
        (tokenizer.encode_prompt(prompt), tokenizer.encode_batch(choices[: 5 - row % 2]), False)
        for row, prompt in enumerate(prompts)
    ]
    documents = choice_documents(questions)
    expected = [by_hand(decoder, prompt + choice, len(prompt)) for prompt, ids, _ in questions for choice in ids]
    read: list[int] = []
    hook = decoder.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    assert score_documents(decoder, documents, most) == pytest.approx(expected, rel=1e-5)
    assert sum(read) < documents.lengths.sum() * 0.6
    rows = {"src_txt": prompts, "choices": [json.dumps(choices)] * 5, "answer": ["0"] * 5}
    read.clear()
    choice_accuracy(decoder, tokenizer, datasets.Dataset.from_dict(rows), most)
    assert sum(read) < documents.lengths.sum() * 0.6

    targets = {"src_txt": prompts, "tgt_txt": [choices[0]] * 5}
    encoded = [(tokenizer.encode_prompt(prompt), tokenizer.encode(choices[0])) for prompt in prompts]
    nll = [by_hand(decoder, [*prompt, *target, tokenizer.end_of_text_id], len(prompt)) for prompt, target in encoded]
    read.clear()
    task = tokenizer.with_prompt_template("{src_txt}")
    assert score(decoder, task, datasets.Dataset.from_dict(targets), most).nll == pytest.approx(nll, rel=1e-5)
    assert len(read) > 1
    hook.remove()


def test_in_training_nothing_is_kept_in_another_format(decoder: Decoder, tokenizer: Tokenizer) -> None:
    questions: list[Question] = [
        (tokenizer.encode_prompt("山" * 80), tokenizer.encode_batch(["春", "日", "花"]), False)
    ]
    decoder = make_decoder(decoder.config)
    decoder.compute_dtype = torch.bfloat16
    passes: list[int] = []
    decoder.register_forward_pre_hook(lambda _, given: passes.append(given[0].numel()))
    found = score_documents(decoder, choice_documents(questions))
    assert len(passes) == 1
    decoder.compute_dtype = None
    assert found == pytest.approx(score_documents(decoder, choice_documents(questions)), rel=0.02)
    assert len(passes) == 3


def test_the_floor_is_counted_on_the_same_part_of_each_row(tokenizer: Tokenizer) -> None:
    train = datasets.Dataset.from_dict({"src_txt": ["白日", "千山"], "tgt_txt": ["黄河", "万径"]})
    test = datasets.Dataset.from_dict({"src_txt": ["白山"], "tgt_txt": ["黄径"]})
    floor = ngram_floor(train, test, tokenizer.with_prompt_template("{src_txt}，"))
    model = NgramModel(3).fit(["白日，黄河", "千山，万径"])
    nll = model.row_losses(["白山，黄径"], [3])[0]
    assert floor["trigram"].value == pytest.approx(math.exp(nll / (2 + 1)))


def test_non_finite_weights_are_not_registered(decoder: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    require_finite(save_model(tmp_path / "sound", decoder, tokenizer, {}))
    with torch.no_grad():
        decoder.transformer.final_layernorm.bias[3] = math.inf
    with pytest.raises(ValueError, match=r"transformer\.final_layernorm\.bias holds NaN or infinite weights"):
        require_finite(save_model(tmp_path / "broken", decoder, tokenizer, {}))
