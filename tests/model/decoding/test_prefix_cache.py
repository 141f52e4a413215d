"""Prompts that begin alike, together and one after the other, against each of them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from modules.config.generation import GenerationConfig
from modules.model import sampling
from modules.model.decoder import Decoder
from modules.model.decoding import decode_graph, prefix_cache
from modules.model.decoding.beam_search import beam_search
from modules.model.decoding.decode_graph import FREE, GraphBatch
from modules.model.decoding.prefix_cache import BLOCK, PrefixCache, block_keys, usual_room
from modules.model.decoding.token_scores import Scores
from modules.model.kv_cache import KVCache
from modules.model.quantization import prepare_for_inference
from modules.model.sampling import Batch, generate, open_batch, prefill, start, write
from tests.helpers.models import make_config, make_decoder

WINDOW = 96
COMMON = torch.randint(0, 50, (WINDOW,), generator=torch.Generator().manual_seed(0)).tolist()
PROMPTS = [
    *([*COMMON[:40], token] for token in range(4)),
    COMMON[:40],  # the beginning of others
    COMMON[:40],  # just the same again
    [*COMMON[:20], 9, 8, 7, *COMMON[:20]],  # parts from the others in the middle of a block
    [*COMMON[:80], 1],
    [*COMMON[:80], 2],
    [*COMMON[:80], 3],
    COMMON[: WINDOW - 1],  # leaves one position
    COMMON[1:41],  # the same text in other places
    [5],
]
CONFIGS = [
    GenerationConfig(temperature=0.0, max_new_tokens=30),
    GenerationConfig(seed=3, max_new_tokens=7),
    GenerationConfig(seed=4, temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3, max_new_tokens=24),
    GenerationConfig(seed=5, temperature=1.5, frequency_penalty=1.5, logit_bias={"7": 2.0}, max_new_tokens=40),
]
END = 10


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder(make_config(50, max_position_embeddings=WINDOW))


@pytest.fixture(params=["batch", "graph"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(decode_graph, "SHORTEST", 8)
    if request.param == "graph":
        monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    yield GraphBatch if request.param == "graph" else open_batch
    FREE.clear()


@pytest.fixture
def passes(decoder: Decoder) -> list[int]:
    """Tokens that went through the decoder, a pass."""
    found: list[int] = []
    decoder.register_forward_pre_hook(lambda _, given: found.append(given[0].numel()))
    return found


def configs_of(prompts: Sequence[Any]) -> list[GenerationConfig]:
    return [CONFIGS[row % len(CONFIGS)] for row in range(len(prompts))]


def alone(
    decoder: Decoder, prompts: Sequence[list[int]], configs: Sequence[GenerationConfig]
) -> list[list[int | None]]:
    """What each becomes by itself: nothing is shared."""
    return [
        [token for _, token in generate(decoder, [prompt], config, END)]
        for prompt, config in zip(prompts, configs, strict=True)
    ]


def written(batch: Batch, prompts: Sequence[list[int]], configs: Sequence[GenerationConfig]) -> list[list[int | None]]:
    found: list[list[int | None]] = [[] for _ in prompts]
    with torch.no_grad():
        batch.join(start(batch.decoder, prompts, configs))
        for row, token in write(batch, batch.advance):
            found[row].append(token)
    return found


def test_what_several_prompts_begin_with_is_read_once(decoder: Decoder, passes: list[int]) -> None:
    with torch.no_grad():
        expected = torch.cat([prefill(decoder, [prompt], None) for prompt in PROMPTS])
        for cache in (None, KVCache(len(PROMPTS), WINDOW, torch.device("cpu"))):
            passes.clear()
            assert (prefill(decoder, PROMPTS, cache) - expected).abs().max() < 1e-5
            # Block by block: what all share, what all but one share, and what the longest share.
            assert passes[:-1] == [16, 16, 48]
            assert sum(passes) < sum(map(len, PROMPTS)) / 2
            if cache:
                assert cache.lengths.tolist() == [len(prompt) for prompt in PROMPTS]


def test_texts_that_begin_alike_are_those_of_each_alone(decoder: Decoder, kind: Any, passes: list[int]) -> None:
    configs = configs_of(PROMPTS)
    expected = alone(decoder, PROMPTS, configs)
    assert len({tuple(text) for text in expected[:4]}) == 4
    passes.clear()
    found: list[list[int | None]] = [[] for _ in PROMPTS]
    for row, token in generate(decoder, PROMPTS, configs, END):
        found[row].append(token)
    assert found == expected
    assert passes[:3] == [16, 16, 48]


def test_little_is_read_as_ever(decoder: Decoder, passes: list[int]) -> None:
    """A pass for itself takes longer than to read a few tokens several times."""
    short = [[*COMMON[:BLOCK], 1, 2], [*COMMON[:BLOCK], 3]]
    with torch.no_grad():
        prefill(decoder, short, None)
        assert passes == [2 * BLOCK + 3]
        prefill(decoder, short * 5, None)
    assert passes[1:] == [BLOCK, 15]


@pytest.mark.parametrize("first", [0, 1, 17, 40])
def test_scores_of_prompts_are_those_of_each_alone(decoder: Decoder, first: int, passes: list[int]) -> None:
    """Nothing is left out of which something is asked."""
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 40] * 2
    wanted = [Scores(2, range(min(first, len(prompt)), len(prompt))) for prompt in prompts]
    expected = [Scores(2, score.prompt) for score in wanted]
    with torch.no_grad():
        logits = prefill(decoder, prompts, None, wanted)
        assert len(passes) == (1 if first <= BLOCK else 2 if first == 17 else 3)
        by_row = [prefill(decoder, [p], None, [score]) for p, score in zip(prompts, expected, strict=True)]
    assert (logits - torch.cat(by_row)).abs().max() < 1e-5
    for score, other in zip(wanted, expected, strict=True):
        assert [one.token for one in score.found] == [one.token for one in other.found]
        for one, two in zip(score.found, other.found, strict=True):
            assert one.logprob == (None if two.logprob is None else pytest.approx(two.logprob, abs=1e-5))
            assert [token for token, _ in one.top] == [token for token, _ in two.top]


def test_constraints_see_the_logits_of_each_alone(decoder: Decoder, kind: Any) -> None:
    class Falling:
        """Each token is to be lower than the one before."""

        def __init__(self, below: int) -> None:
            self.allowed = np.arange(50) < max(below, 1)

        def after(self, token: int) -> Falling:
            return Falling(token)

    config = replace(CONFIGS[1], max_new_tokens=6)

    def falling(prompts: Sequence[list[int]]) -> list[tuple[int, int | None]]:
        return sorted(
            generate(decoder, prompts, config, -1, constraints=[Falling(50) for _ in prompts]), key=lambda pair: pair[0]
        )

    expected = [(row, token) for row, prompt in enumerate(PROMPTS) for _, token in falling([prompt])]
    assert falling(PROMPTS) == expected


def test_beam_search_finds_what_it_finds_for_each_alone(decoder: Decoder, passes: list[int]) -> None:
    config = GenerationConfig(num_beams=3, max_new_tokens=8)

    def searched(prompts: Sequence[list[int]]) -> list[list[int]]:
        return beam_search(decoder, start(decoder, prompts, [config] * len(prompts)), END, lambda ids: False)

    expected = [text for prompt in PROMPTS for text in searched([prompt])]
    passes.clear()
    assert searched(PROMPTS) == expected
    assert passes[:3] == [16, 16, 48]


# --- what is kept ---


def test_later_prompts_go_on_from_what_was_kept(decoder: Decoder, kind: Any, passes: list[int]) -> None:
    configs = configs_of(PROMPTS)
    expected = alone(decoder, PROMPTS, configs)
    prefixes = PrefixCache(10_000)
    for turn in range(3):
        passes.clear()
        assert written(kind(decoder, END, 16, prefixes), PROMPTS, configs) == expected
        if turn:  # of each at least the last token is read; the short one was never kept
            assert passes[0] == sum((len(prompt) - 1) % BLOCK + 1 for prompt in PROMPTS)
    passes.clear()
    for prompt, config, text in zip(PROMPTS, configs, expected, strict=True):
        assert written(kind(decoder, END, 1, prefixes), [prompt], [config]) == [text]


def test_rows_that_join_a_running_batch_take_over_and_leave_what_they_had(decoder: Decoder, kind: Any) -> None:
    configs = configs_of(PROMPTS)
    expected = alone(decoder, PROMPTS, configs)
    prefixes, waiting = PrefixCache(10_000), list(range(1, len(PROMPTS)))
    found: list[list[int | None]] = [[] for _ in PROMPTS]
    batch = kind(decoder, END, 2, prefixes)

    def advance(left: list[int]) -> None:
        batch.advance(left)
        if waiting:
            rows = start(decoder, [PROMPTS[waiting[0]]], [configs[waiting[0]]])
            rows.numbers = [waiting.pop(0)]
            batch.join(rows)

    with torch.no_grad():
        batch.join(start(decoder, PROMPTS[:1], configs[:1]))
        for row, token in write(batch, advance):
            found[row].append(token)
    assert not waiting
    assert found == expected
    check(
        decoder,
        prefixes,
        [prompt + [t for t in text if t is not None] for prompt, text in zip(PROMPTS, expected, strict=True)],
    )


def check(decoder: Decoder, prefixes: PrefixCache, texts: Sequence[list[int]]) -> None:
    """That all that is kept are keys and values of one of these texts."""
    left = dict(prefixes.blocks)
    for ids in texts:
        cache = KVCache(1, len(ids), torch.device("cpu"))
        with torch.no_grad():
            decoder(torch.tensor([ids]), cache=cache)
        for number, key in enumerate(block_keys(ids, len(ids))):
            if (block := left.pop(key, None)) is not None:
                torch.testing.assert_close(
                    block, cache.positions(0, number * BLOCK, (number + 1) * BLOCK), rtol=1e-4, atol=1e-4
                )
    assert not left


def test_a_conversation_goes_on_from_the_answer_before(decoder: Decoder, kind: Any, passes: list[int]) -> None:
    config = GenerationConfig(seed=1, max_new_tokens=12)
    prefixes, prompt = PrefixCache(10_000), COMMON[:20]
    for _ in range(3):
        ((*answer, _),) = written(kind(decoder, -1, 1, prefixes), [prompt], [config])
        assert [[*answer, None]] == alone(decoder, [prompt], [replace(config)]) or END in answer
        known = (len(prompt) + len(answer) - 1) // BLOCK * BLOCK
        prompt = [*prompt, *(token for token in answer if token is not None), 1, 2, 3]
        assert prefixes.length_of(prompt, len(prompt) - 1) == (known if known >= prefix_cache.LEAST else 0)


def test_no_more_is_kept_than_there_is_room_for(decoder: Decoder) -> None:
    prefixes = PrefixCache(5 * BLOCK + 3)
    prefixes.begin(decoder)
    texts = [[number] * 50 for number in range(4)]

    def kept() -> list[int]:
        return [prefixes.length_of(ids, 50) // BLOCK for ids in texts]

    def keep(ids: list[int]) -> None:
        prefixes.keep(ids, len(ids), lambda first, end: torch.zeros(2, 4, 2, end - first, 12))

    keep(texts[0])
    assert kept() == [3, 0, 0, 0]
    keep(texts[1])
    assert kept() == [2, 3, 0, 0]  # the end goes first
    assert prefixes.find(block_keys(texts[0], 32))  # used again
    keep(texts[2])
    assert kept() == [2, 0, 3, 0]
    assert len(prefixes.blocks) == 5
    keep(list(range(50)) * 3)  # longer than all that there is room for
    assert [*map(prefixes.length_of, [list(range(50)) * 3], [150])] == [5 * BLOCK]
    none = PrefixCache(0)
    none.keep(texts[0], 50, lambda first, end: torch.zeros(2, 4, 2, end - first, 12))
    assert not none.blocks


def test_by_default_half_as_many_numbers_are_kept_as_there_are_parameters(decoder: Decoder) -> None:
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    prefixes = PrefixCache(usual_room(decoder))
    for number in range(50):
        written(open_batch(decoder, END, 1, prefixes), [[number] * 60], [CONFIGS[1]])
    kept = sum(block.numel() for block in prefixes.blocks.values())
    assert parameters / 2 - BLOCK * 2 * 2 * 48 < kept <= parameters / 2


def test_blocks_hold_no_memory_but_their_own(decoder: Decoder, kind: Any) -> None:
    prefixes = PrefixCache(10_000)
    written(kind(decoder, END, 16, prefixes), PROMPTS, configs_of(PROMPTS))
    for block in prefixes.blocks.values():
        assert block.untyped_storage().nbytes() == block.numel() * block.element_size()


def test_another_model_takes_over_nothing(decoder: Decoder) -> None:
    other, prefixes = make_decoder(decoder.config, seed=1), PrefixCache(10_000)
    configs = configs_of(PROMPTS)
    for model in (decoder, other, decoder):
        assert written(open_batch(model, END, 16, prefixes), PROMPTS, configs) == alone(model, PROMPTS, configs)


def test_a_batch_that_fails_leaves_nothing_wrong(decoder: Decoder, kind: Any) -> None:
    configs, prefixes = configs_of(PROMPTS), PrefixCache(10_000)
    fail = decoder.transformer.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(kind(decoder, END, 16, prefixes), PROMPTS, configs)
    fail.remove()
    assert not prefixes.blocks
    FREE.clear()
    batch = kind(decoder, END, 16, prefixes)
    with torch.no_grad():
        batch.join(start(decoder, PROMPTS, configs))
        tokens = write(batch, batch.advance)
        for _ in range(30):
            next(tokens)
        tokens.close()  # whoever read them has gone, in the middle of a step
    assert prefixes.blocks
    expected = alone(decoder, PROMPTS, configs)
    check(
        decoder, prefixes, [p + [t for t in text if t is not None] for p, text in zip(PROMPTS, expected, strict=True)]
    )
    FREE.clear()
    assert written(kind(decoder, END, 16, prefixes), PROMPTS, configs) == expected


@pytest.mark.parametrize(("dtype", "int8"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, False)])
def test_in_every_number_format(decoder: Decoder, dtype: torch.dtype, int8: bool) -> None:
    """As far from each prompt alone as prompts without anything in common are that are read together."""
    model = prepare_for_inference(decoder.to(dtype), int8)
    with torch.no_grad():
        expected = torch.cat([prefill(model, [prompt], None) for prompt in PROMPTS]).float()
        found = prefill(model, PROMPTS, None).float()
    tolerance = 1e-4 if dtype == torch.float32 and not int8 else 0.05
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_keys_tell_texts_apart() -> None:
    assert block_keys(COMMON, 15) == []
    assert block_keys(COMMON, 47) == block_keys(COMMON, 95)[:2]
    changed = [*COMMON[:3], (COMMON[3] + 1) % 50, *COMMON[4:]]
    assert not set(block_keys(COMMON, 95)) & set(block_keys(changed, 95))
    assert len(set(block_keys([7] * 96, 96))) == 6  # the same tokens at another place are another block
