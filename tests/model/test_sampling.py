"""Sampling: what a row becomes depends on itself alone; parameters mean what they say."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config.generation import GenerationConfig
from modules.inference.text_generator import TextGenerator, Writer
from modules.model.decoder import Decoder
from modules.model.decoding.penalties import penalize
from modules.model.decoding.sampler import Sampler, exponential_race, minus_exponential, noise, seeds_of
from modules.model.sampling import Batch, Rows, generate
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder

PROMPTS = ["白日依山尽，", "春", "", "床前明月光，疑是地上霜。", "hello, 世界\n", "春"]


@pytest.fixture
def generator(decoder: Decoder, tokenizer: Tokenizer) -> TextGenerator:
    return TextGenerator(decoder, tokenizer)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.0},
        {"seed": 3},
        {"seed": 4, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
        {"seed": 5, "stop": ["。", "山"]},
    ],
)
def test_a_batch_equals_its_rows_one_by_one_and_streamed(generator: TextGenerator, parameters: dict[str, Any]) -> None:
    together = generator(PROMPTS, max_new_tokens=24, **parameters)
    alone = [generator(prompt, max_new_tokens=24, **parameters) for prompt in PROMPTS]
    streamed = [prompt + "".join(generator.stream(prompt, max_new_tokens=24, **parameters)) for prompt in PROMPTS]
    assert together == alone == [{"text": text} for text in streamed]


def test_seed_repeats_and_no_seed_varies(generator: TextGenerator) -> None:
    assert generator("春", seed=1) == generator("春", seed=1) != generator("春", seed=2)
    assert generator("春") != generator("春")


def test_one_seed_draws_anew_for_each_prompt(tokenizer: Tokenizer) -> None:
    """Where prompts leave the choice, one seed must not make all answers the same: here they leave it whole."""
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    decoder.word_embeddings.weight.data.zero_()
    texts = TextGenerator(decoder, tokenizer)(PROMPTS[:2], max_new_tokens=12, seed=1, return_full_text=False)
    assert texts[0] != texts[1]


class Script(torch.nn.Module):
    """A decoder that writes a given id at each position, whatever came before."""

    def __init__(self, decoder: Decoder, script: list[int]) -> None:
        super().__init__()
        self.config, self.word_embeddings, self.script = decoder.config, decoder.word_embeddings, script
        self.rows_computed: list[int] = []

    def next_logits(self, positions: torch.Tensor) -> torch.Tensor:
        ids = [self.script[int(position) % len(self.script)] for position in positions]
        return torch.nn.functional.one_hot(torch.tensor(ids), self.config.vocab_size).float() * 50

    def head(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return hidden

    def forward(self, ids: torch.Tensor, lengths: Any = None, cache: Any = None, head: Any = None) -> torch.Tensor:
        if lengths:
            cache.advance(lengths)
            positions = torch.cat([torch.arange(n) for n in lengths])
            return head(self.next_logits(positions)[None], None)  # type: ignore[no-any-return]
        self.rows_computed.append(len(ids))
        positions = cache.lengths.clone()
        cache.advance([1] * len(ids))
        return self.next_logits(positions)[:, None]


def test_a_row_ends_at_end_of_text_and_costs_nothing_more(decoder: Decoder, tokenizer: Tokenizer) -> None:
    word = tokenizer.encode("山")[0]
    script = Script(decoder, [word] * 5 + [tokenizer.end_of_text_id] + [word] * 4 + [tokenizer.end_of_text_id])
    generator = TextGenerator(script, tokenizer)  # type: ignore[arg-type]
    # The first prompt ends before position 6, the second starts after it and runs on to position 11.
    results = generator(["春", "春" * 6], temperature=0.0, max_new_tokens=50)
    assert [result["text"] for result in results] == ["春" + "山" * 4, "春" * 6 + "山" * 4]
    assert script.rows_computed == [2, 2, 2, 2]
    results = generator(["春" * 6, "春"], temperature=0.0, max_new_tokens=2)
    assert [result["text"] for result in results] == ["春" * 6 + "山" * 2, "春" + "山" * 2]


def test_a_stop_text_is_left_out_even_across_tokens(decoder: Decoder, tokenizer: Tokenizer) -> None:
    script = tokenizer.encode("山水风水花")
    generator = TextGenerator(Script(decoder, [0, *script]), tokenizer)  # type: ignore[arg-type]
    assert generator("春", temperature=0.0, max_new_tokens=5, stop=["水花"])["text"] == "春山水风"
    assert generator("春", temperature=0.0, max_new_tokens=5, stop="风")["text"] == "春山水"
    assert list(generator.stream("春", temperature=0.0, max_new_tokens=5, stop=["水花"])) == ["山", "水风"]


def test_a_row_tells_whether_it_ended_by_itself(decoder: Decoder, tokenizer: Tokenizer) -> None:
    script = [0, *tokenizer.encode("山水"), tokenizer.end_of_text_id]
    generator = TextGenerator(Script(decoder, script), tokenizer)  # type: ignore[arg-type]
    limits = {1: False, 2: False, 3: True, 9: True}
    config = GenerationConfig(temperature=0.0)
    found = {n: generator.write(["春"], replace(config, max_new_tokens=n))[0] for n in limits}
    assert {n: row.stopped for n, row in found.items()} == limits
    assert [row.text for row in found.values()] == ["山", "山水", "山水", "山水"]
    assert generator.write(["春"], replace(config, max_new_tokens=2, stop=["水"]))[0].stopped


@given(st.lists(st.text("ab水花", max_size=4), max_size=8), st.lists(st.text("ab水花", min_size=1), max_size=2))
@settings(deadline=None)
def test_pieces_make_the_text_up_to_the_first_stop(tokenizer: Tokenizer, texts: list[str], stop: list[str]) -> None:
    whole = "".join(texts)
    writer = Writer(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(whole):
        pieces.append(writer.push(token))
        if writer.stopped:
            break
    pieces.append(writer.flush())
    # The stop text that is complete first ends it; of those complete at once, the one that began first.
    ends = [(whole.find(text) + len(text), whole.find(text)) for text in stop if text in whole]
    assert "".join(pieces) == (whole[: min(ends)[1]] if ends else whole)


def test_max_new_tokens_and_positions_limit_the_length(generator: TextGenerator, tokenizer: Tokenizer) -> None:
    config = GenerationConfig(max_new_tokens=5, seed=0)
    prompts = [tokenizer.encode_prompt("春"), tokenizer.encode_prompt("山" * 93)]
    counts = [0, 0]
    for row, token in generate(generator.decoder, prompts, config, end_of_text_id=-1):
        counts[row] += token is not None
    assert counts == [5, 2]  # start, 93 characters and 2 more fill 96 positions
    with pytest.raises(ValueError, match="96 positions"):
        generator("山" * 95)


def kept(probabilities: list[list[float]], *parameters: dict[str, Any], candidates: int = 0) -> list[list[int]]:
    """The indices of the tokens of each row that its parameters leave."""
    configs = [GenerationConfig(**given) for given in parameters]
    size = len(probabilities[0])
    rows = Rows([], [[0]] * len(configs), [], [], configs)
    sampler = Sampler(rows, -1, size, torch.device("cpu"))
    left = torch.tensor(probabilities)
    sampler.filter(left, candidates or size)
    return [row.nonzero()[:, 0].tolist() for row in left]


def test_top_k_and_top_p_keep_what_they_say() -> None:
    row = [0.05, 0.5, 0.15, 0.1, 0.2]
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"top_k": 2}, [1, 4]),
        ({"top_p": 0.6}, [1, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_k": 1, "top_p": 0.99}, [1]),
        ({"top_k": 3, "top_p": 0.5}, [1]),  # of the three likeliest one alone has more than half
        ({"top_k": 3, "top_p": 0.6}, [1, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-95}, [1]),  # which float32 rounds to 0
    ]
    parameters, expected = [given for given, _ in cases], [left for _, left in cases]
    for candidates in (3, 5):  # that many are sorted first
        if candidates == 5:
            assert [kept([row], given)[0] for given in parameters] == expected
        few = [i for i, given in enumerate(parameters) if given.get("top_k", 0) <= candidates]
        found = kept([row] * len(few), *(parameters[i] for i in few), candidates=candidates)
        assert found == [expected[i] for i in few]


def test_tokens_as_likely_as_the_last_one_stay() -> None:
    assert kept([[0.2, 0.4, 0.2, 0.2]], {"top_k": 2}) == kept([[0.2, 0.4, 0.2, 0.2]], {"top_p": 0.5}) == [[0, 1, 2, 3]]


def sample(decoder: Decoder, logits: torch.Tensor, rows: Rows, end_of_text_id: int) -> list[int]:
    """The next token of each row after these logits."""
    batch = Batch(decoder, end_of_text_id)
    batch.rows, batch.logits = rows, logits
    return batch.next_tokens()


def test_repetition_penalty_follows_ctrl() -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0], [2.0, -1.0, 3.0]])
    written = torch.tensor([[0, 1, 0], [2, 2, 2]])
    assert penalize(logits, written, 2.0, -1).tolist() == [[1.0, -2.0, 3.0], [2.0, -1.0, 1.5]]
    each = penalize(logits, written, torch.tensor([[2.0], [1.0]]), end_of_text_id=1)
    assert each.tolist() == [[1.0, -1.0, 3.0], [2.0, -1.0, 3.0]]
    assert logits[0, 0] == 2.0  # the caller's logits stay


def test_the_end_of_a_text_is_no_repetition(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """End-of-text starts each prompt; penalized for that, a model would hardly ever stop."""
    logits = torch.zeros(1, tokenizer.vocab_size)
    logits[0, tokenizer.end_of_text_id], logits[0, 9] = 2.0, 1.5
    config = GenerationConfig(temperature=0.0, repetition_penalty=2.0)
    rows = Rows([0], [[tokenizer.end_of_text_id]], [random.Random()], [1], [config])
    assert sample(decoder, logits, rows, tokenizer.end_of_text_id) == [tokenizer.end_of_text_id]


def test_sampling_follows_the_distribution(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode_prompt("春")
    with torch.no_grad():
        expected = (decoder(torch.tensor([prompt]))[0, -1] / 2).softmax(-1)
    config = GenerationConfig(temperature=2.0, max_new_tokens=1)
    drawn = [token for _, token in generate(decoder, [prompt] * 4000, config, -1) if token is not None]
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / len(drawn)
    assert float((found - expected).abs().max()) < 0.04


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": -1.0}, r"temperature \(-1.0\)"),
        ({"temperature": float("nan")}, r"temperature \(nan\)"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
        ({"top_k": -1}, r"top_k \(-1\)"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"max_new_tokens": 0}, r"max_new_tokens \(0\)"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"stop": [""]}, "stop must not hold an empty text"),
        ({"stop": [1]}, "stop must be a text or a list of texts"),
        ({"topp": 0.5}, "topp is no generation parameter.*top_p"),
    ],
)
def test_bad_parameters_are_refused(generator: TextGenerator, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator("春", **parameters)


def test_what_is_not_text_is_refused(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="text 1 must be a text, not None"):
        generator(["春", None])  # type: ignore[list-item]
    assert generator([]) == []


def test_a_task_model_answers_without_repeating_the_prompt(decoder: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(decoder, tokenizer.with_prompt_template("问：{src_txt}\n答："))
    answer = generator("春", seed=1, max_new_tokens=4)["text"]
    assert generator("春", seed=1, max_new_tokens=4, return_full_text=True)["text"] == "春" + answer
    plain = TextGenerator(decoder, tokenizer)
    assert plain("问：春\n答：", seed=1, max_new_tokens=4, return_full_text=False)["text"] == answer


def test_dropout_is_off_when_writing(tokenizer: Tokenizer) -> None:
    config = make_config(tokenizer.vocab_size, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    generator = TextGenerator(make_decoder(config).train(), tokenizer)
    assert generator("春", temperature=0.0) == generator("春", temperature=0.0)


def drawn(probabilities: torch.Tensor, count: int) -> torch.Tensor:
    """So many draws from one distribution."""
    seeds = torch.randint(-(2**31), 2**31, (count, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    return exponential_race(probabilities, seeds).argmax(-1)


@pytest.mark.parametrize(("size", "spread"), [(2, 1.0), (20, 1.0), (20, 4.0), (200, 0.0)])
def test_draws_follow_the_distribution(size: int, spread: float) -> None:
    probabilities = (torch.randn(size, generator=torch.Generator().manual_seed(2)) * spread).softmax(-1)
    found = torch.bincount(drawn(probabilities, 100_000), minlength=size)
    expected = probabilities.double() * 100_000
    often = expected >= 5
    chi_square = float(((found - expected) ** 2 / expected)[often].sum())
    freedom = int(often.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 8  # beyond the 99.99th percentile


def test_a_token_of_probability_0_is_never_drawn() -> None:
    possible = torch.arange(3000) % 3 == 1
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(3)) * 4
    probabilities = logits.masked_fill(~possible, float("-inf")).softmax(-1)
    assert possible[drawn(probabilities, 500)].all()
    only = torch.zeros(3000)
    only[17] = 1
    assert set(drawn(only, 500).tolist()) == {17}


def test_random_numbers_have_no_infinite_ends() -> None:
    """Of the 2³² values that a hash may take: what would make log(0), or 0 ÷ 0."""
    ends = torch.tensor([0, -(2**31), 1, 2**30, 2**31 - 64, 2**31 - 1, -1], dtype=torch.int32)
    found = minus_exponential(ends)
    assert found.isfinite().all()
    assert (found < 0).all()
    assert found[0] == -(2.0**-32)


def test_random_numbers_are_independent_from_token_to_token_and_row_to_row() -> None:
    seeds = torch.cat([seeds_of([random.Random(row)], torch.device("cpu")) for row in range(40)])
    uniform = -noise(seeds, 21_128).double().expm1()
    assert (uniform.mean(1) - 0.5).abs().max() < 5 * (12 * 21_128) ** -0.5
    for apart in (1, 2, 128):  # tokens near each other, in one row
        product = ((uniform[:, apart:] - 0.5) * (uniform[:, :-apart] - 0.5)).mean(1)
        assert product.abs().max() * 12 < 5 * 21_000**-0.5
    assert (torch.corrcoef(uniform) - torch.eye(40)).abs().max() < 5 * 21_128**-0.5
    assert torch.equal(noise(seeds[3:4], 100), noise(seeds, 21_128)[3:4, :100])  # a token's doesn't hang on others


def test_rows_with_different_parameters_are_drawn_as_each_alone(decoder: Decoder) -> None:
    parameters: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 600},
        {"top_p": 0.9, "repetition_penalty": 1.5},
        {"top_p": 0.999, "temperature": 2.0},  # more than CANDIDATES
        {"top_k": 5, "top_p": 0.5},
        {"temperature": 0.0, "repetition_penalty": 3.0},
    ]
    configs = [GenerationConfig(**given) for given in parameters]
    logits = torch.randn(len(configs), 3000, generator=torch.Generator().manual_seed(1)) * 2

    def rows(indices: list[int], trial: int) -> Rows:
        likeliest = logits.topk(20).indices
        ids = [likeliest[i, : 3 + 2 * i].tolist() for i in indices]
        return Rows(
            indices, ids, [random.Random(trial + i) for i in indices], [1] * len(ids), [configs[i] for i in indices]
        )

    everyone = list(range(len(configs)))
    different = set()
    for trial in range(50):
        together = sample(decoder, logits, rows(everyone, trial), 0)
        assert together == [sample(decoder, logits[[i]], rows([i], trial), 0)[0] for i in everyone]
        different.add(tuple(together))
    assert len(different) > 10


@pytest.mark.parametrize("parameters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_probabilities_that_are_no_numbers_end_in_an_error(decoder: Decoder, parameters: dict[str, Any]) -> None:
    for size in (4, 5):
        logits = torch.zeros(1, size)
        logits[0, 2] = float("nan")
        rows = Rows([0], [[1]], [random.Random(1)], [1], [GenerationConfig(**parameters)])
        with pytest.raises(FloatingPointError, match="try another dtype"):
            sample(decoder, logits, rows, -1)
