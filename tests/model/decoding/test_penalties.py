"""Biases, penalties and min_p, by values computed by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from modules.config.generation import GenerationConfig
from modules.model.decoder import Decoder
from modules.model.decoding.penalties import Penalties
from modules.model.decoding.sampler import Sampler
from modules.model.sampling import Rows, generate
from modules.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")


def rows_of(*given: tuple[list[int], list[int], dict[str, Any]]) -> Rows:
    """Rows of (prompt, what was written, parameters)."""
    configs = [GenerationConfig.parse(parameters) for _, _, parameters in given]
    ids = [prompt + written for prompt, written, _ in given]
    lengths = [len(prompt) for prompt, _, _ in given]
    generators = [random.Random(row) for row in range(len(given))]
    return Rows(list(range(len(given))), ids, generators, [9] * len(given), configs, [], lengths)


def penalized(rows: Rows, logits: list[float]) -> list[list[float]]:
    found = Penalties(rows, -1, len(logits), CPU)(torch.tensor([logits] * len(rows.ids)))
    return [[round(value, 5) for value in row] for row in found.tolist()]


def test_presence_and_frequency_count_what_was_written_and_not_the_prompt() -> None:
    rows = rows_of(
        ([0, 0, 3], [1, 2, 1], {"presence_penalty": 0.5}),
        ([0, 0, 3], [1, 2, 1], {"frequency_penalty": 0.25}),
        ([0, 0, 3], [1, 2, 1], {"frequency_penalty": -0.5, "presence_penalty": 2}),
        ([1, 2], [], {"frequency_penalty": 1}),
        ([1], [1, 1, 1], {}),
    )
    assert penalized(rows, [1.0, 2.0, -3.0, 4.0]) == [
        [1.0, 1.5, -3.5, 4.0],
        [1.0, 1.5, -3.25, 4.0],
        [1.0, 1.0, -4.5, 4.0],
        [1.0, 2.0, -3.0, 4.0],
        [1.0, 2.0, -3.0, 4.0],
    ]


def test_what_is_written_afterwards_counts_too() -> None:
    rows = rows_of(([0], [1], {"frequency_penalty": 0.5, "presence_penalty": 1}), ([2], [], {"repetition_penalty": 2}))
    penalties = Penalties(rows, -1, 4, CPU)
    for last in ([1, 3], [2, 3]):
        penalties.append(lambda last=last: torch.tensor(last))  # type: ignore[misc]
    assert penalties(torch.zeros(2, 4) + 4).tolist() == [[4.0, 2.0, 2.5, 4.0], [4.0, 4.0, 2.0, 2.0]]


def test_a_bias_comes_first_then_repetition_then_presence_and_frequency() -> None:
    everything = {"logit_bias": {1: 3}, "repetition_penalty": 2, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    rows = rows_of(([0], [1], everything), ([0], [1], {"logit_bias": {"2": -100, 3: 1.5}}))
    assert penalized(rows, [1.0, -2.0, 2.0, 0.0]) == [
        [0.5, 1 / 2 - 0.75, 2.0, 0.0],  # -2 + 3 = 1 is positive, and so is divided
        [1.0, -2.0, -98.0, 1.5],
    ]


def test_the_callers_logits_stay() -> None:
    logits = torch.zeros(1, 3)
    Penalties(rows_of(([0], [1], {"presence_penalty": 1, "logit_bias": {0: 5}})), -1, 3, CPU)(logits)
    assert logits.tolist() == [[0.0, 0.0, 0.0]]


def drawn(logits: list[float], times: int = 300, **parameters: Any) -> set[int]:
    rows = rows_of(*[([0], [], parameters)] * times)
    return set(Sampler(rows, -1, len(logits), CPU)(torch.tensor([logits] * times), rows.generators).tolist())


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    logits = torch.tensor([0.4, 0.21, 0.19, 0.2]).log().tolist()
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, min_p=0.51) == {0, 1}
    assert drawn(logits, min_p=0.45) == {0, 1, 2, 3}
    assert drawn(logits, min_p=0.49) == {0, 1, 3}
    assert drawn(logits, min_p=1) == {0}
    assert drawn([1.0, 1.0, 0.999], min_p=1) == {0, 1}  # equals stay
    assert drawn(logits, min_p=0.3, top_k=2) == {0, 1}
    # The temperature comes before: 0.4² : 0.21² is 1 : 0.28.
    assert drawn(logits, min_p=0.3, temperature=0.5) == {0}


def test_min_p_of_one_row_leaves_the_others_alone() -> None:
    given: list[tuple[list[int], list[int], dict[str, Any]]] = [([0], [], {"min_p": 1}), ([0], [], {})]
    rows = rows_of(*given * 200)
    ids = Sampler(rows, -1, 3, CPU)(torch.tensor([[0.1, 0.0, 0.0]] * 400), rows.generators)
    assert set(ids[0::2].tolist()) == {0}
    assert set(ids[1::2].tolist()) == {0, 1, 2}


def test_a_bias_bans_and_forces(decoder: Decoder, tokenizer: Tokenizer) -> None:
    def written(**parameters: Any) -> list[int]:
        config = GenerationConfig.parse({"max_new_tokens": 12, "temperature": 0} | parameters)
        prompt = tokenizer.encode_prompt("春")
        return [token for _, token in generate(decoder, [prompt], config, -1) if token is not None]

    plain = written()
    assert plain[0] not in written(logit_bias={plain[0]: -100})
    assert written(logit_bias={7: 100}) == [7] * 12
    assert len(set(written(frequency_penalty=2, logit_bias=dict.fromkeys(range(9), 20)))) > 6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"min_p": -0.1}, r"min_p \(-0.1\) must be from 0"),
        ({"min_p": 1.5}, r"min_p \(1.5\)"),
        ({"presence_penalty": 2.5}, r"presence_penalty \(2.5\) must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, r"frequency_penalty \(nan\) must be from -2 to 2"),
        ({"frequency_penalty": "x"}, "frequency_penalty must be a number"),
        ({"logit_bias": {5: 101}}, "logit_bias must map token ids to numbers from -100 to 100, not '5' to 101"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {-5: 1}}, "logit_bias must be a mapping of token ids to numbers"),
        ({"logit_bias": {"春": 1}}, "logit_bias must be a mapping"),
        ({"logit_bias": {"5": True}}, "logit_bias must be a mapping"),
        ({"logit_bias": {"5": "1"}}, "logit_bias must be a mapping"),
        ({"logit_bias": [5]}, "logit_bias must be a mapping"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias must be a mapping"),
        ({"logit_bias": None}, "logit_bias must not be null"),
        ({"logit_bias": dict.fromkeys(range(301), 1)}, "logit_bias has 301 token ids; there may be 300"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig.parse(parameters)


def test_a_bias_of_no_token_is_refused(decoder: Decoder) -> None:
    config = GenerationConfig(logit_bias={"1000000": 1.0})
    with pytest.raises(ValueError, match=r"logit_bias names token 1000000; this model's token ids are from 0 to \d+"):
        list(generate(decoder, [[1]], config, -1))
