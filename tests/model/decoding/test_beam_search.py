"""Beam search against transformers, which reads our export, and against what it is made to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.checkpoint.formats import huggingface
from modules.checkpoint.weights import StoredModel, stored
from modules.config.base import ConfigError
from modules.config.generation import GenerationConfig
from modules.evaluation.verse.form import regular
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.model.kv_cache import KVCache
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder

PROMPTS = ["白日依山尽，", "春", "床前明月光，疑是", "", "江南", "月落乌啼霜满天，", "明月", "山中"]
MOST = 24


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer) -> Decoder:
    """Its texts don't repeat one token for ever, and some end."""
    decoder = make_decoder(make_config(tokenizer.vocab_size), spread=8.0)
    with torch.no_grad():
        decoder.word_embeddings.weight.div_(8)
        decoder.position_embeddings.weight.mul_(3)
        decoder.word_embeddings.weight[tokenizer.end_of_text_id] *= 1.3
    return decoder


@pytest.fixture(scope="module")
def theirs(small: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' model of the same weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder: Path = tmp_path_factory.mktemp("export")
    huggingface.write(folder, StoredModel(small.config, stored(small.state_dict())), tokenizer)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "parameters",
    [{"num_beams": 4}, {"num_beams": 3, "length_penalty": 2.0}, {"num_beams": 4, "length_penalty": -1.0},
     {"num_beams": 8}],
)  # fmt: skip
def test_texts_are_those_of_transformers(
    small: Decoder, tokenizer: Tokenizer, theirs: Any, parameters: dict[str, Any]
) -> None:
    generator, end = TextGenerator(small, tokenizer), tokenizer.end_of_text_id
    prompts = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    ours = generator.write_ids(prompts, GenerationConfig(max_new_tokens=MOST, **parameters))
    expected, stopped = [], []
    for ids in prompts:
        given = torch.tensor([ids])
        found = theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=MOST, do_sample=False, early_stopping=False,
            eos_token_id=end, pad_token_id=end, bos_token_id=None, **parameters,
        )[0, len(ids) :].tolist()  # fmt: skip
        stopped.append(end in found)
        expected.append(tokenizer.decode(found))
    assert [row.text for row in ours] == expected
    assert [row.stopped for row in ours] == stopped
    assert set(stopped) == {True, False}
    assert len(set("".join(expected))) > 10


def test_rows_search_alone_and_nothing_is_drawn(small: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(small, tokenizer)
    together = generator(PROMPTS, num_beams=3, max_new_tokens=MOST)
    assert together == [generator(prompt, num_beams=3, max_new_tokens=MOST, seed=9, top_p=0.5) for prompt in PROMPTS]
    assert [row["text"] for row in together] == [
        prompt + "".join(generator.stream(prompt, num_beams=3, max_new_tokens=MOST)) for prompt in PROMPTS
    ]


def test_beams_find_likelier_texts_than_greed(tokenizer: Tokenizer) -> None:
    """Of a model that is less sure of its next token."""
    generator = TextGenerator(make_decoder(make_config(tokenizer.vocab_size), spread=3.0), tokenizer)

    def likelihood(prompt: str, **parameters: Any) -> float:
        """Of as many tokens in both."""
        ids = tokenizer.encode_prompt(prompt)
        config = GenerationConfig(max_new_tokens=6, logit_bias={str(tokenizer.end_of_text_id): -100.0}, **parameters)
        text = generator.write([prompt], config)[0].text
        scores = generator.score_ids([[*ids, *tokenizer.encode(text)]])[0]
        return sum(score.logprob or 0.0 for score in scores[len(ids) :])

    beams = sum(likelihood(prompt, num_beams=8) for prompt in PROMPTS)
    assert beams > sum(likelihood(prompt, temperature=0.0) for prompt in PROMPTS) + 0.1


def test_a_text_ends_before_a_stop_text(small: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(small, tokenizer)
    bias = {str(tokenizer.encode("山")[0]): 100.0}
    config = GenerationConfig(num_beams=3, max_new_tokens=MOST, logit_bias=bias, stop=["山山"])
    row = generator.write(["春"], config)[0]
    assert (row.text, row.stopped, row.tokens) == ("", True, 2)


def test_beams_keep_a_form_of_verse(tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    config = GenerationConfig(num_beams=4, max_new_tokens=60, form="五绝", tones=True)
    for row in TextGenerator(decoder, tokenizer).write(["", "春"], config):
        assert row.stopped
    assert regular("春" + row.text) == 1.0


@pytest.mark.parametrize("penalty", [-10.0, 10.0])
def test_texts_of_one_length_are_ranked_alike_by_any_length_penalty(
    small: Decoder, tokenizer: Tokenizer, penalty: float
) -> None:
    generator, bias = TextGenerator(small, tokenizer), {str(tokenizer.end_of_text_id): -100.0}
    config = GenerationConfig(num_beams=3, max_new_tokens=MOST, logit_bias=bias)
    expected = generator.write(PROMPTS, config)
    assert generator.write(PROMPTS, replace(config, length_penalty=penalty)) == expected
    assert {row.tokens for row in expected} == {MOST}


@pytest.mark.parametrize("stop", [[], ["。"]])
def test_a_form_may_leave_fewer_tokens_than_there_are_beams(tokenizer: Tokenizer, stop: list[str]) -> None:
    """The weights have rows beyond the vocabulary, as in checkpoints that are padded."""
    decoder = make_decoder(make_config(3 * tokenizer.vocab_size))
    config = GenerationConfig(num_beams=64, max_new_tokens=30, form="五绝", stop=stop)
    for row in TextGenerator(decoder, tokenizer).write(["", "白日依山尽，黄河入海流"], config):
        assert row.stopped
        assert not stop or row.text.count("，") <= 1


def test_a_beam_is_an_integer_within_bounds(small: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(small, tokenizer)
    for wrong in (0, 65):
        with pytest.raises(ConfigError, match=rf"num_beams \({wrong}\) must be from 1 \(none\) to 64"):
            generator("春", num_beams=wrong)
    with pytest.raises(ValueError, match="num_beams doesn't go with log-probabilities"):
        generator.write_ids([tokenizer.encode_prompt("春")], GenerationConfig(num_beams=2), logprobs=1)


def test_a_cache_is_reordered_by_index(small: Decoder) -> None:
    cache = KVCache(3, 6, torch.device("cpu"))
    ids = [[1, 2, 3], [4], [5, 6]]
    small(torch.tensor([[token for row in ids for token in row]]), [3, 1, 2], cache)
    before = [layer.clone() for layer in cache.layers]
    cache.reorder([2, 0, 0, 2])
    assert cache.lengths.tolist() == [2, 3, 3, 2]
    assert cache.longest == 3
    assert cache.ragged
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer, old[[2, 0, 0, 2]])
