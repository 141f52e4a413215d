"""The decoder against itself: cached, packed, alone. Against ModelScope: checkpoint/formats/test_modelscope.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from modules.config.loader import load_config
from modules.model.decoder import Decoder, parameter_count
from modules.model.kv_cache import KVCache
from tests.helpers.models import ROOT, make_config, make_decoder

SIZES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_cached_logits_equal_uncached(activation: str) -> None:
    decoder = make_decoder(make_config(100, hidden_act=activation))
    ids = torch.randint(0, 100, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = decoder(ids)
        cache = KVCache(rows=1, capacity=20, device=ids.device)
        pieces = [decoder(ids[:, :7], cache=cache)]
        pieces += [decoder(ids[:, i : i + 1], cache=cache) for i in range(7, 20)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 1e-5


def test_rows_of_different_length_share_a_cache() -> None:
    decoder = make_decoder(make_config(100))
    lengths = [3, 9, 9, 1]
    ids = [torch.randint(0, 100, (n + 4,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    cache = KVCache(rows=4, capacity=13, device=ids[0].device)
    with torch.no_grad():
        decoder(torch.cat([row[:n] for row, n in zip(ids, lengths, strict=True)])[None], lengths, cache)
        for step in range(4):
            last = torch.stack([row[n + step] for row, n in zip(ids, lengths, strict=True)])
            logits = decoder(last[:, None], cache=cache)
            if step == 1:  # a row leaves in the middle
                cache.select([0, 1, 3])
                del ids[2], lengths[2]
        for row, found in zip(ids, logits, strict=True):
            assert (found[-1] - decoder(row[None])[0, -1]).abs().max() <= 1e-5


def test_a_document_is_blind_to_its_neighbours() -> None:
    decoder = make_decoder(make_config(100))
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(0, 100, (n,), generator=generator) for n in (5, 8, 8, 1, 30)]
    with torch.no_grad():
        packed = decoder(torch.cat(documents)[None], [len(d) for d in documents])[0]
        alone = torch.cat([decoder(document[None])[0] for document in documents])
    assert (packed - alone).abs().max() <= 1e-5


def test_later_tokens_do_not_change_earlier_logits() -> None:
    decoder = make_decoder(make_config(100))
    ids = torch.randint(0, 100, (1, 12), generator=torch.Generator().manual_seed(4))
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 100
    with torch.no_grad():
        before, after = decoder(ids), decoder(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_follows_the_closed_formula(size: str) -> None:
    model = load_config("pretrain", [f"model={size}", "model.vocab_size=21128", "data.sequence_length=32"]).model
    with torch.device("meta"):
        decoder = Decoder(model)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameter_count(model)


def test_175b_has_about_175_billion_parameters() -> None:
    model = load_config("pretrain", ["model=175b", "model.vocab_size=50257"]).model
    assert parameter_count(model) == pytest.approx(175e9, rel=0.01)


def test_first_loss_is_about_that_of_guessing() -> None:
    config = make_config(8000, hidden_size=256, num_hidden_layers=4)
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(0))
    ids = torch.randint(0, 8000, (16, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decoder(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(8000), rel=0.02)


def test_residual_projections_start_smaller() -> None:
    config = make_config(100, hidden_size=256, num_hidden_layers=8)
    decoder = Decoder(config)
    decoder.init_weights()
    layer = decoder.transformer.layers[0]
    assert float(layer.attention.query_key_value.weight.std()) == pytest.approx(0.02, rel=0.05)
    for weight in (layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight):
        assert float(weight.std()) == pytest.approx(0.02 / math.sqrt(16), rel=0.05)


def test_too_long_a_text_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"97 tokens.*max_position_embeddings \(96\)"):
        decoder(torch.zeros(1, 97, dtype=torch.int64))


# --- activation checkpointing ---


def gradient(recompute: Any, **dropout: float) -> torch.Tensor:
    decoder = make_decoder(make_config(100, **dropout)).train()
    decoder.transformer.activation_checkpointing = recompute
    ids = torch.randint(0, 100, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of the dropouts
    decoder(ids, [15, 15, 10]).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize(
    "dropout",
    [{}, {"hidden_dropout_prob": 0.3}, {"attention_probs_dropout_prob": 0.3},
     {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}],
    ids=["no dropout", "hidden", "attention", "both"],
)  # fmt: skip
def test_recomputing_changes_no_gradient(recompute: str, dropout: dict[str, float]) -> None:
    torch.testing.assert_close(gradient(recompute, **dropout), gradient("none", **dropout), rtol=1e-6, atol=1e-6)


def layer_calls(decoder: Decoder, backward: bool = False) -> int:
    """How often the first layer runs in a forward pass, and the backward pass if wanted."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = decoder.transformer.layers[0].register_forward_pre_hook(count)
    logits = decoder(torch.arange(8)[None])
    if backward:
        logits.sum().backward()
    handle.remove()
    return calls


def test_layers_run_twice_only_for_a_backward_pass() -> None:
    decoder = make_decoder(make_config(100)).train()
    names = list(decoder.state_dict())
    assert layer_calls(decoder, backward=True) == 1
    decoder.transformer.activation_checkpointing = "full"
    assert list(decoder.state_dict()) == names
    assert layer_calls(decoder, backward=True) == 2
    assert layer_calls(decoder.eval(), backward=True) == 1
    with torch.no_grad():
        assert layer_calls(decoder.train()) == 1
