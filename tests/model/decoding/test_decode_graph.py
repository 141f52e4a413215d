"""Decoding at fixed shapes against decoding at any. Without a GPU nothing is captured: each step runs by itself."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modules.config.generation import GenerationConfig
from modules.model import sampling
from modules.model.decoder import Decoder
from modules.model.decoding import decode_graph
from modules.model.decoding.decode_graph import (
    FREE,
    DecodeGraph,
    GraphBatch,
    StaticCache,
    flash_attention,
    masked_attention,
    take,
)
from modules.model.sampling import Batch, generate, open_batch, start, write
from tests.helpers.models import make_config, make_decoder

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 4], [12, 13]]
END = 10
CONFIGS = [
    GenerationConfig(temperature=0.0, max_new_tokens=30),
    GenerationConfig(seed=3, max_new_tokens=7),
    GenerationConfig(seed=4, temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3, max_new_tokens=24),
    GenerationConfig(seed=5, temperature=1.5, frequency_penalty=1.5, logit_bias={"7": 2.0}, max_new_tokens=40),
    GenerationConfig(seed=6, max_new_tokens=1),
]


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder(make_config(50))


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`generate` with fixed shapes from here on, in a cache that has to grow soon."""
    monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    monkeypatch.setattr(decode_graph, "SHORTEST", 4)
    yield
    FREE.clear()


def texts(decoder: Decoder, *, end: int = END) -> list[list[int | None]]:
    found: list[list[int | None]] = [[] for _ in PROMPTS]
    for row, token in generate(decoder, PROMPTS, CONFIGS, end):
        found[row].append(token)
    return found


def test_a_step_can_be_captured_before_a_row_has_joined(decoder: Decoder) -> None:
    graph = DecodeGraph(decoder, 2, 8)
    graph.step(decoder)
    assert graph.logits.shape == (2, 50)
    assert graph.cache.lengths.tolist() == [0, 0]  # all places are free


def test_what_is_no_number_is_refused_under_a_penalty_too(decoder: Decoder, static: None) -> None:
    """Its id, -1, is asked for among those written before it is read: on a GPU that would end the process."""
    with torch.no_grad():
        decoder.word_embeddings.weight.fill_(torch.nan)
    config = GenerationConfig(temperature=0.0, repetition_penalty=1.3, max_new_tokens=4)
    with pytest.raises(FloatingPointError, match="aren't numbers"):
        list(generate(decoder, PROMPTS, config, END))


def test_tokens_are_those_of_decoding_at_any_shape(decoder: Decoder, request: pytest.FixtureRequest) -> None:
    expected = texts(decoder)
    assert expected != texts(decoder, end=-1)  # some end early
    request.getfixturevalue("static")
    assert texts(decoder) == texts(decoder) == expected
    assert [graph.cache.capacity for graph in FREE[decoder]] == [64]  # the second time it was there


@pytest.mark.parametrize("kind", [Batch, GraphBatch])
def test_rows_come_and_go(decoder: Decoder, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at first; others come when those have written some tokens, and need more places and positions."""
    monkeypatch.setattr(decode_graph, "SHORTEST", 4)
    configs = [replace(config, max_new_tokens=n) for config, n in zip(CONFIGS, (6, 9, 60, 12, 1), strict=True)]
    expected = [[token for _, token in generate(decoder, [p], c, END)] for p, c in zip(PROMPTS, configs, strict=True)]
    waiting = [[2], [3, 4]]
    with torch.no_grad():
        batch = kind(decoder, END, 2) if kind is GraphBatch else kind(decoder, END)
        batch.join(start(decoder, PROMPTS[:2], configs[:2]))
        found: list[list[int | None]] = [[] for _ in PROMPTS]

        def advance(left: list[int]) -> None:
            batch.advance(left)
            if waiting and len(found[1]) >= 3:
                numbers = waiting.pop(0)
                rows = start(decoder, [PROMPTS[i] for i in numbers], [configs[i] for i in numbers])
                rows.numbers = numbers
                batch.join(rows)

        sizes = set()
        for row, token in write(batch, advance):
            found[row].append(token)
            if kind is GraphBatch:
                sizes.add((len(batch.graph.ids), batch.graph.cache.capacity))
    assert found == expected
    if kind is GraphBatch:
        assert sizes >= {(2, 16), (4, 128)}  # places and positions, at first and at last
    FREE.clear()


def test_a_graph_is_used_again_and_by_one_batch_at_a_time(decoder: Decoder, static: None) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=9)
    expected = [token for _, token in generate(decoder, PROMPTS[:1], config, -1)]
    (graph,) = FREE[decoder]
    one, two = generate(decoder, PROMPTS[:1], config, -1), generate(decoder, PROMPTS[:1], config, -1)
    mixed = [(next(one)[1], next(two)[1]) for _ in range(4)]
    assert mixed == [(token, token) for token in expected[:4]]
    assert not FREE[decoder]
    one.close()  # whoever reads has gone
    assert FREE[decoder] == [graph]
    assert [token for _, token in two] == expected[4:]
    assert len(FREE[decoder]) == 2
    for _ in range(3):
        list(generate(decoder, PROMPTS[:3], config, -1))
    assert [len(graph.ids) for graph in FREE[decoder]] == [1, 4]  # of free ones few are kept


def test_a_graph_goes_with_the_weights_that_it_reads(decoder: Decoder, static: None) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=3)
    list(generate(decoder, PROMPTS[:1], config, -1))
    (graph,) = FREE[decoder]
    with torch.no_grad():
        decoder.word_embeddings.weight.mul_(2)  # in place, as an optimizer does
    assert take(decoder, 1, 4) is graph
    FREE[decoder].append(graph)
    decoder.word_embeddings.weight.data = decoder.word_embeddings.weight.data.clone()
    assert take(decoder, 1, 4) is not graph
    assert not FREE[decoder]
    other = make_decoder(decoder.config)
    list(generate(other, PROMPTS[:1], config, -1))
    assert other in FREE
    FREE.pop(decoder)
    del other
    gc.collect()
    assert not FREE  # the model's memory and the graph's can be had again


def test_an_error_leaves_no_graph_behind(decoder: Decoder, static: None) -> None:
    with torch.no_grad():
        decoder.transformer.final_layernorm.bias[0] = float("nan")
    with pytest.raises(FloatingPointError):
        list(generate(decoder, PROMPTS, GenerationConfig(temperature=0.0), END))
    assert not FREE.get(decoder)


def test_no_step_is_computed_that_no_row_can_need(
    decoder: Decoder, static: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = decode_graph.DecodeGraph.step
    monkeypatch.setattr(decode_graph.DecodeGraph, "step", lambda *given: (steps.append(1), step(*given)))
    config = GenerationConfig(temperature=0.0, max_new_tokens=9)
    assert len(list(generate(decoder, PROMPTS, config, -1))) == 10 * len(PROMPTS)
    assert len(steps) == 8


class Operators(TorchDispatchMode):
    """Which operators ran, on what shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self.calls.append((func._schema.name, [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


def test_a_step_is_the_same_for_every_token_and_asks_the_device_nothing(decoder: Decoder, static: None) -> None:
    seen = []
    with torch.no_grad():
        batch = GraphBatch(decoder, END, 4)
        batch.join(start(decoder, PROMPTS[:3], CONFIGS[:3]))
        for _ in range(3):
            batch.next_tokens()
            assert batch.graph is not None
            with Operators() as watch:
                batch.graph.step(decoder)
            seen.append(watch.calls)
    assert seen[0] == seen[1] == seen[2]
    names = {name for name, _ in seen[0]}
    assert "aten::index_put_" in names
    assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique"}


def test_flash_attention_is_told_where_keys_begin_and_end() -> None:
    """The operator has no kernel for CPUs: this one does what its arguments say."""

    def attend(
        q: Any, k: Any, v: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int,
        dropout_p: float, is_causal: bool, return_debug_mask: bool, *, seqused_k: Any = None, **others: Any,
    ) -> Any:  # fmt: skip
        assert (max_q, dropout_p, is_causal, return_debug_mask) == (1, 0.0, False, False)
        assert int(seqused_k.max()) <= max_k
        outputs = []
        for i, used in enumerate(seqused_k.tolist()):
            rows = slice(int(cum_seq_q[i]), int(cum_seq_q[i + 1]))
            keys = slice(int(cum_seq_k[i]), int(cum_seq_k[i]) + used)
            scores = torch.einsum("qhs,khs->hqk", q[rows], k[keys]) / q.shape[-1] ** 0.5
            outputs.append(torch.einsum("hqk,khs->qhs", scores.softmax(-1), v[keys]))
        return torch.cat(outputs), *[q.new_empty(0)] * 4

    cache = StaticCache(make_decoder(make_config(50)), 4, 8)
    cache.used.copy_(torch.tensor([1, 8, 3, 5]))
    generator = torch.Generator().manual_seed(1)
    cache.layers[0].normal_(generator=generator)
    q = torch.randn(4, 4, 12, generator=generator)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", attend, "CPU")
    try:
        found = flash_attention(cache, q, *cache.layers[0].unbind(2))
    finally:
        library._destroy()
    torch.testing.assert_close(found, masked_attention(cache, q, *cache.layers[0].unbind(2)))


def test_a_cpu_decodes_at_any_shape(decoder: Decoder) -> None:
    assert type(open_batch(decoder, END, 4)) is Batch
