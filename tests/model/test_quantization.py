"""The fast layers against the plain ones: the same numbers in float32, nearly the same perplexity in int8."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from modules.checkpoint.loading import load_for_inference, load_model
from modules.evaluation.likelihood import score
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.model.kv_cache import KVCache
from modules.model.loss import linear_cross_entropy
from modules.model.quantization import Int8Linear, PackedLinear, packs, prepare_for_inference, quantize_weight
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

PROMPTS = ["白日依山尽，", "春", "", "床前明月光，疑是地上霜。", "hello, 世界\n", "春"]


@pytest.fixture
def folder(decoder: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", decoder, tokenizer, {})


def test_float32_computes_what_the_plain_layers_do(folder: Path, tokenizer: Tokenizer) -> None:
    plain, fast = load_model(folder), load_for_inference(folder)
    assert not packs(torch.float32) or isinstance(fast.transformer.layers[0].mlp.dense_4h_to_h, PackedLinear)  # type: ignore[union-attr]
    ids = torch.randint(0, tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (fast(ids) - plain(ids)).abs().max() <= 1e-5
        cache = KVCache(rows=3, capacity=20, device=ids.device)
        pieces = [fast(ids[:, :7], cache=cache), *(fast(ids[:, i : i + 1], cache=cache) for i in range(7, 20))]
        assert (torch.cat(pieces, 1) - plain(ids)).abs().max() <= 1e-5
    written, expected = (
        TextGenerator(d, tokenizer)(PROMPTS, temperature=0.0, max_new_tokens=32) for d in (fast, plain)
    )
    assert written == expected


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_row_of_a_batch_is_written_as_it_is_alone(folder: Path, tokenizer: Tokenizer, dtype: str) -> None:
    generator = TextGenerator(load_for_inference(folder, dtype), tokenizer)
    for parameters in ({"temperature": 0.0}, {"seed": 3}):
        together = generator(PROMPTS, max_new_tokens=24, **parameters)
        assert together == [generator(prompt, max_new_tokens=24, **parameters) for prompt in PROMPTS]


@pytest.fixture(params=[torch.backends.quantized.engine, "onednn"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of torch's integer kernels: this machine's, and one that int8_product does without."""
    monkeypatch.setattr(torch.backends.quantized, "engine", request.param)
    return str(request.param)


def test_an_int8_row_is_bit_for_bit_the_same_beside_any_neighbours(engine: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Int8Linear(torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator))
    row = torch.randn(1, 64, generator=generator)
    for rows in (1, 2, 5, 64):
        neighbours = 1000 * torch.randn(rows, 64, generator=generator)
        assert torch.equal(linear(torch.cat([neighbours, row]))[-1:], linear(row))


@pytest.mark.parametrize("levels", [127, 63])
def test_int8_is_near_with_the_largest_numbers_that_there_are(
    levels: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that saturate, as AVX2's do with 127 levels, would be wrong by tens of percent."""
    if levels == 63:
        monkeypatch.setattr("modules.model.quantization.weight_levels", lambda: 63)
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.ones(32, 256), torch.full((4, 256), 1e4)
    x[1] *= -1
    x[2] = torch.randn(256, generator=generator)
    x[3] = 0
    weight[1] = torch.randn(256, generator=generator).sign()
    weight[2] = 0
    linear = Int8Linear(weight, torch.zeros(32))
    assert int(quantize_weight(weight)[0].abs().max()) <= levels
    expected = x @ weight.T
    assert (linear(x) - expected).abs().max(1).values.le(0.01 * x.abs().sum(1)).all()
    assert torch.equal(linear(x)[3], torch.zeros(32))


LARGEST = """
import torch
from modules.model.quantization import Int8Linear, weight_levels
print(weight_levels(), Int8Linear(torch.ones(1, 64), None)(torch.ones(1, 64)).item())
"""


@pytest.mark.skipif(torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="not an x86 processor")
def test_instructions_that_saturate_get_smaller_weights() -> None:
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    found = subprocess.run([sys.executable, "-c", LARGEST], env=environment, cwd=ROOT, capture_output=True, check=True)
    levels, product = found.stdout.split()
    assert int(levels) == 63
    assert float(product) == pytest.approx(64, rel=1e-3)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer, poems: dict[str, list[str]]) -> Decoder:
    """Far below a uniform guess on poems that it hasn't seen."""
    decoder = make_decoder(make_config(tokenizer.vocab_size, hidden_size=64), spread=1.0).train()
    documents = [[0, *tokenizer.encode(text)[:94], 0] for text in poems["train"]]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    for step in range(80):
        some = documents[step % 8 :: 8]
        lengths = [len(ids) - 1 for ids in some]
        labels = torch.tensor([[token for ids in some for token in ids[1:]]])
        inputs = torch.tensor([[token for ids in some for token in ids[:-1]]])
        hidden = decoder.hidden_states(inputs, lengths)
        loss = linear_cross_entropy(hidden, decoder.word_embeddings.weight, labels) / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder.eval()


@pytest.mark.parametrize("levels", [127, 63])
def test_int8_costs_less_than_a_percent_of_perplexity(
    trained: Decoder,
    tokenizer: Tokenizer,
    poems: dict[str, list[str]],
    tmp_path: Path,
    levels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if levels == 63:
        monkeypatch.setattr("modules.model.quantization.weight_levels", lambda: 63)
    folder = save_model(tmp_path / "model", trained, tokenizer, {})
    rows = datasets.Dataset.from_dict({"src_txt": poems["test"] + poems["validation"]})
    plain, fast, small = (
        score(decoder, tokenizer, rows).perplexity.value
        for decoder in (trained, load_for_inference(folder), load_for_inference(folder, "int8"))
    )
    assert plain < tokenizer.vocab_size / 2
    assert fast == pytest.approx(plain, rel=1e-5)
    assert small != plain
    assert small == pytest.approx(plain, rel=0.01)


@pytest.mark.skipif(not packs(torch.bfloat16), reason="oneDNN has no bfloat16 kernels for this CPU")
def test_bfloat16_is_for_the_products_alone(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Sums, norms and attention in float32 leave it nearer to exact arithmetic with the same weights."""
    rounded = decoder.bfloat16()
    ids = torch.randint(0, tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = copy.deepcopy(rounded).double()(ids)
        plain = rounded(ids)
        fast = prepare_for_inference(rounded)
        cache = KVCache(rows=3, capacity=20, device=ids.device)
        logits = fast(ids, cache=cache)
    assert logits.dtype == cache.layers[0].dtype == torch.float32
    assert (logits - exact).square().mean() < 0.75 * (plain - exact).square().mean()


def test_nothing_but_linear_layers_is_rounded(decoder: Decoder) -> None:
    half = prepare_for_inference(decoder.bfloat16(), int8=True)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float32}
    assert not [module for module in half.modules() if isinstance(module, torch.nn.Linear)]


def test_int8_is_refused_where_there_is_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.checkpoint.loading.default_device", lambda: torch.device("cuda"))
    with pytest.raises(ValueError, match="dtype=int8 is for CPUs, .* use dtype=bfloat16"):
        load_for_inference(folder, "int8")
