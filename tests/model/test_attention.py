"""Attention on the ways that hardware takes: kept scores, one call for any lengths, compiled layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from modules.model import attention as attention_module
from modules.model import decoder as decoder_module
from modules.model.activation_checkpointing import run_layer
from modules.model.attention import Layout, MaterializedAttention, attention
from modules.model.loss import IGNORED, linear_cross_entropy
from tests.helpers.models import make_config, make_decoder

LENGTHS = [
    [20, 20, 33, 64], [20, 31, 33, 64, 64], [5] * 7 + [9] * 3, [64, 33, 20, 20], [7, 8, 9, 10, 90], [12] * 15,
    [13] * 15 + [14], [3] * 40, [90, 40],
]  # fmt: skip


@pytest.mark.parametrize("time", [1, 5, 64])
def test_kept_scores_give_the_fused_kernels_results(time: int) -> None:
    qkv = torch.randn(3, time, 4, 3, 16, generator=torch.Generator().manual_seed(time))
    weighting = torch.randn(3, time, 4, 16, generator=torch.Generator().manual_seed(1))
    exact = qkv.double().requires_grad_()
    q, k, v = exact.permute(0, 2, 3, 1, 4).unbind(2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    (expected * weighting).sum().backward()
    for number_format, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.03)):
        given = qkv.to(number_format).requires_grad_()
        found = MaterializedAttention.apply(given)  # type: ignore[no-untyped-call]
        assert found.dtype == number_format
        (found * weighting.to(number_format)).sum().backward()
        for ours, theirs in ((found, expected), (given.grad, exact.grad)):
            assert ours is not None
            assert theirs is not None
            assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < tolerance


def test_bfloat16_keeps_scores_of_short_documents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    apply = MaterializedAttention.apply
    monkeypatch.setattr(MaterializedAttention, "apply", lambda qkv: taken.append(qkv.shape[:2]) or apply(qkv))  # type: ignore[no-untyped-call,func-returns-value]
    monkeypatch.setattr(attention_module, "MATERIALIZED_LENGTH", 6)
    layout = Layout.of([6, 6, 7])
    qkv = torch.randn(19, 2, 3, 8)
    attention(qkv.requires_grad_(), layout, 0.0)
    attention(qkv.detach().bfloat16(), layout, 0.0)
    attention(qkv.detach().bfloat16().requires_grad_(), layout, 0.1)
    assert not taken
    attention(qkv.detach().bfloat16().requires_grad_(), layout, 0.0)
    assert taken == [(2, 6)]


def test_a_layout_says_where_documents_lie() -> None:
    layout = Layout.of([3, 1, 5])
    assert layout.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert layout.starts.tolist() == [0, 3, 4, 9]
    assert layout.starts.dtype == torch.int32
    assert (layout.longest, layout.groups) == (8, [(1, 3), (1, 1), (1, 5)])
    assert Layout.of([4, 4]).groups == [(2, 4)]
    assert [Layout.of([length]).longest for length in (1, 2, 3, 4)] == [1, 2, 4, 4]


# --- one call for documents of any lengths, as GPUs take it: here its kernels are written with the CPU's ---


def parts(tensor: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
    """(1, nh, T, hs) of each document."""
    return tuple(part.transpose(0, 1)[None] for part in tensor.split((starts[1:] - starts[:-1]).tolist()))


def varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Any, longest: int, *rest: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    assert longest >= int((starts[1:] - starts[:-1]).max())
    found = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*document, 0.0, True)[0][0].transpose(0, 1)
        for document in zip(*(parts(tensor, starts) for tensor in (q, k, v)), strict=True)
    ]
    state = torch.zeros(2, dtype=torch.uint64)
    return torch.cat(found).contiguous(), q.new_zeros(q.shape[1], len(q), dtype=torch.float32), state


def varlen_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, _: Any, starts: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, ...]:
    kernels = torch.ops.aten
    found = []
    for g, *document in zip(*(parts(tensor, starts) for tensor in (gradient, q, k, v)), strict=True):
        y, sums = kernels._scaled_dot_product_flash_attention_for_cpu(*document, 0.0, True)
        backward = kernels._scaled_dot_product_flash_attention_for_cpu_backward(g, *document, y, sums, 0.0, True)
        found.append([one[0].transpose(0, 1) for one in backward])
    return tuple(torch.cat(one).contiguous() for one in zip(*found, strict=True))


@pytest.fixture(scope="module")
def kernels() -> None:
    """They stay for as long as the process lives; the CPU isn't among VARLEN_FORMATS outside of these tests."""
    varlen._varlen_attn.register_kernel("cpu")(varlen_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(varlen_backward)


@pytest.fixture
def one_call(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "VARLEN_FORMATS", {"cpu": (torch.float64,)})


def run(decoder: Any, lengths: list[int], padding: int = 0) -> tuple[float, Tensor]:
    """Loss and gradients, in float64; with tokens after the documents that aren't trained on."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 100, (1, sum(lengths)), generator=generator)
    labels = torch.cat([ids.roll(-1), torch.full((1, padding), IGNORED)], 1)
    layout = Layout.of([*lengths, *([padding] if padding else [])])
    decoder.zero_grad()
    head = partial(linear_cross_entropy, labels=labels, trained=torch.arange(sum(lengths)))
    loss = decoder(F.pad(ids, (0, padding)), layout, head=head)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in decoder.parameters()])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_one_call_for_any_lengths_trains_alike(
    lengths: list[int], kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(make_config(100, hidden_size=64)).train().double()
    expected, expected_gradient = run(decoder, lengths)
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(attention_module, "VARLEN_FORMATS", {"cpu": (torch.float64,)})
        plain = attention_module.varlen_attention
        patched.setattr(attention_module, "varlen_attention", lambda *a: calls.append(1) or plain(*a))  # type: ignore[func-returns-value]
        found, gradient = run(decoder, lengths, padding=-sum(lengths) % 64)
    assert len(calls) == decoder.config.num_hidden_layers
    assert found == pytest.approx(expected, rel=1e-6)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-6


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_layers_are_compiled_a_few_times_for_any_layouts(
    checkpointing: Any, one_call: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for each new layout would cost seconds each, and after eight of them nothing would be compiled at all."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled: Callable[..., Tensor] = torch.compile(run_layer, backend=counter, fullgraph=True, dynamic=True)
    monkeypatch.setattr(decoder_module, "compiled_layer", lambda: compiled)
    decoder = make_decoder(make_config(100, hidden_size=64)).train().double()
    decoder.transformer.activation_checkpointing = checkpointing
    for lengths in LENGTHS:
        decoder.transformer.compile_layers = False
        expected, expected_gradient = run(decoder, lengths, padding=-sum(lengths) % 64)
        decoder.transformer.compile_layers = True
        found, gradient = run(decoder, lengths, padding=-sum(lengths) % 64)
        assert found == pytest.approx(expected, rel=1e-9)
        assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-9
    assert 1 <= counter.frame_count <= 3


def test_compiled_checkpointing_keeps_what_the_plan_says(one_call: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a compiled layer inside of a checkpoint the policy would see nothing: `selective` would be `full`."""
    kept: dict[str, int] = {}
    for mode in ("none", "selective", "full"):
        torch._dynamo.reset()
        compiled = torch.compile(run_layer, backend="aot_eager", fullgraph=True, dynamic=True)
        monkeypatch.setattr(decoder_module, "compiled_layer", lambda compiled=compiled: compiled)
        decoder = make_decoder(make_config(100, hidden_size=64)).train().double()
        decoder.transformer.activation_checkpointing, decoder.transformer.compile_layers = mode, True  # type: ignore[assignment]
        parameters = {p.data_ptr() for p in decoder.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes, parameters: set[int] = parameters) -> Tensor:
            if tensor.data_ptr() not in parameters:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoder(torch.arange(64)[None], [32, 32], head=lambda hidden, weight: hidden)
        kept[mode] = sum(sizes.values())
    assert kept["full"] < 0.5 * kept["selective"] < 0.5 * kept["none"]


class NoWaits(TorchDispatchMode):
    """Fails where a GPU would be waited for: its values asked for, or a result whose size depends on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2"), name
        return func(*args, **(kwargs or {}))


def test_a_forward_pass_and_its_loss_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "VARLEN_FORMATS", {"cpu": (torch.float64,)})

    def without_asking(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
        return qkv.sum(2).flatten(1)  # the emulation asks for the lengths; a GPU's kernel doesn't

    monkeypatch.setattr(attention_module, "varlen_attention", without_asking)
    decoder = make_decoder(make_config(100, hidden_size=64)).train().double()
    ids, trained = torch.randint(0, 100, (1, 40)), torch.arange(5, 40)
    layout = Layout.of([20, 20])
    with NoWaits():
        decoder(ids, layout, head=partial(linear_cross_entropy, labels=ids, trained=trained))
    with pytest.raises(AssertionError, match="nonzero"), NoWaits():
        decoder(ids, layout, head=partial(linear_cross_entropy, labels=ids))


@pytest.fixture(autouse=True, scope="module")
def leave_no_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()
