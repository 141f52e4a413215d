"""Log-probabilities against those by hand: of prompts and of what is written, alone and together, on either batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modules.config.generation import GenerationConfig
from modules.model import sampling
from modules.model.decoder import Decoder
from modules.model.decoding import decode_graph, sampler, token_scores
from modules.model.decoding.decode_graph import FREE, GraphBatch
from modules.model.decoding.token_scores import Scores
from modules.model.sampling import generate, prefill
from tests.helpers.models import make_config, make_decoder

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 4]]
CONFIGS = [
    GenerationConfig(temperature=0.0, max_new_tokens=9),
    GenerationConfig(seed=3, max_new_tokens=5, temperature=2.0, top_k=4),
    GenerationConfig(seed=4, max_new_tokens=7, repetition_penalty=1.8, presence_penalty=1.0, logit_bias={"3": 9.0}),
    GenerationConfig(seed=5, max_new_tokens=6, min_p=0.2),
]


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder(make_config(50))


def by_hand(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    """The log-probabilities (n - 1, V) of what comes after each id."""
    with torch.no_grad():
        return decoder(torch.tensor([ids]))[0, :-1].double().log_softmax(-1)


def check(decoder: Decoder, ids: list[int], scores: Scores, first: int) -> None:
    """That the scores found are those of ids[first:]."""
    expected = by_hand(decoder, ids)
    assert [found.token for found in scores.found] == ids[first:]
    for position, found in enumerate(scores.found, first):
        if position == 0:
            assert (found.logprob, found.top) == (None, [])
            continue
        row = expected[position - 1]
        assert found.logprob == pytest.approx(float(row[ids[position]]), abs=1e-4)
        assert [logprob for _, logprob in found.top] == pytest.approx(row.topk(scores.top).values.tolist(), abs=1e-4)
        assert [float(row[token]) for token, _ in found.top] == pytest.approx(
            [logprob for _, logprob in found.top], abs=1e-4
        )


@pytest.mark.parametrize("kind", ["batch", "graph"])
@pytest.mark.parametrize("chunk", [2, 512])
def test_scores_are_the_models_own_whatever_is_done_to_them(
    decoder: Decoder, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that want none, the prompt's or only what is written, each with parameters of its own, in one batch."""
    monkeypatch.setattr(token_scores, "CHUNK", chunk)
    plain = list(generate(decoder, PROMPTS, CONFIGS, end_of_text_id=-1))
    if kind == "graph":
        monkeypatch.setattr(sampling, "open_batch", GraphBatch)
        monkeypatch.setattr(decode_graph, "SHORTEST", 4)
    scores = [Scores(2, range(3)), None, Scores(0), Scores(50, range(1, 3))]
    written: list[list[int]] = [[] for _ in PROMPTS]
    found = []
    for row, token in generate(decoder, PROMPTS, CONFIGS, -1, scores):
        found.append((row, token))
        if token is not None:
            written[row].append(token)
            if wanted := scores[row]:
                assert wanted.found[-1].token == token  # there before the token is told
    FREE.clear()
    assert sorted(found, key=str) == sorted(plain, key=str)  # nothing else becomes of the texts
    for prompt, text, wanted, first in zip(PROMPTS, written, scores, (0, None, 7, 1), strict=True):
        if wanted is not None and first is not None:
            check(decoder, prompt + text, wanted, first)


@pytest.mark.parametrize("kind", ["batch", "graph"])
def test_the_end_of_text_has_a_score_and_nothing_after_it(
    decoder: Decoder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=9)
    tokens = [token for _, token in generate(decoder, PROMPTS[:1], config, -1) if token is not None]
    end = tokens[4]
    if kind == "graph":
        monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    scores = [Scores(1), Scores(1)]
    list(generate(decoder, [PROMPTS[0], PROMPTS[2]], config, end, scores))
    FREE.clear()
    assert [found.token for found in scores[0].found] == tokens[: tokens.index(end) + 1]


def test_prompts_are_scored_together_as_alone_and_without_writing(decoder: Decoder) -> None:
    together = [Scores(3, range(len(prompt))) for prompt in PROMPTS]
    with torch.no_grad():
        prefill(decoder, PROMPTS, None, together)
    for prompt, scores in zip(PROMPTS, together, strict=True):
        check(decoder, prompt, scores, 0)
        alone = Scores(3, range(len(prompt)))
        with torch.no_grad():
            prefill(decoder, [prompt], None, [alone])
        assert [found.logprob for found in alone.found[1:]] == pytest.approx(
            [found.logprob for found in scores.found[1:]], abs=1e-5
        )


@pytest.mark.parametrize("kind", ["batch", "graph"])
def test_where_no_row_asks_nothing_is_computed(decoder: Decoder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(sampler, "measure", never)
    monkeypatch.setattr(sampling, "measure_prompts", never)
    if kind == "graph":
        monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    list(generate(decoder, PROMPTS, CONFIGS, -1))
    FREE.clear()
    with pytest.raises(AssertionError, match="nobody asked"):
        list(generate(decoder, PROMPTS, CONFIGS, -1, [None, None, None, Scores(0)]))


def test_scores_that_are_no_numbers_are_refused(decoder: Decoder) -> None:
    with torch.no_grad():
        decoder.transformer.final_layernorm.bias[0] = float("nan")
        with pytest.raises(FloatingPointError, match="try another dtype"):
            prefill(decoder, [[1, 2]], None, [Scores(0, range(2))])
