"""Whether a layout over many devices would run: shapes and elements a rank, and the numbers of a narrow model.

`python -m pytest -m slow tests/training/planning/test_rehearsal.py` rehearses the 175B model on 512 devices.
"""

from __future__ import annotations

import dataclasses

import pytest

from modules.config.loader import ConfigError, load_config
from modules.config.model import ModelConfig
from modules.model.decoder import parameter_count
from tests.helpers import rehearsal
from tests.helpers.rehearsal import elements, expected_shapes, narrow, rehearse_numbers, wrong_shapes


def size(name: str, vocab_size: int) -> ModelConfig:
    model: ModelConfig = load_config("pretrain", [f"model={name}"]).model
    return dataclasses.replace(model, vocab_size=vocab_size)


TINY = size("tiny", 301)


def test_a_small_layout_holds_what_it_should() -> None:
    assert wrong_shapes(TINY, 6, 2, tokens=256) == []


def assert_four_processes_train_like_one(model: ModelConfig) -> None:
    alone, together = rehearse_numbers(narrow(model), 2, 2)
    assert float(((together - alone) / alone).abs().max()) <= 1e-5


def test_a_narrow_model_trains_alike_on_four_processes_and_on_one() -> None:
    assert_four_processes_train_like_one(TINY)


@pytest.mark.parametrize(("data_parallel", "tensor_parallel"), [(1, 1), (3, 1), (1, 4), (5, 4), (200, 2)])
def test_every_element_lies_somewhere(data_parallel: int, tensor_parallel: int) -> None:
    """Row-cut and column-cut parameters once over all ranks, the others once over each data-parallel group."""
    ranks = [expected_shapes(TINY, data_parallel, tensor_parallel, r) for r in range(data_parallel * tensor_parallel)]
    whole = expected_shapes(TINY, 1, 1, 0)
    assert elements(whole) == parameter_count(TINY)
    for name in whole:
        cut = name.endswith((*rehearsal.ROW_CUT, *rehearsal.COLUMN_CUT)) or name == "word_embeddings.weight"
        copies = 1 if cut else tensor_parallel
        assert sum(elements({name: shapes[name]}) for shapes in ranks) == copies * elements({name: whole[name]}), name


def test_a_wrong_plan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if attention's output matrix were cut by rows."""
    monkeypatch.setattr(rehearsal, "COLUMN_CUT", ("dense_4h_to_h.weight",))
    found = wrong_shapes(TINY, 2, 2, tokens=256)
    assert any(text.startswith("rank 0: ") and "attention.dense.weight is" in text for text in found)


def test_what_cannot_be_is_refused() -> None:
    layout = ["trainer.nodes=3", "trainer.devices=3", "trainer.tensor_parallel=8", "trainer.strategy=fsdp"]
    with pytest.raises(ConfigError) as caught:
        load_config("pretrain", ["model=tiny", *layout, "data.sequence_length=3000"])
    assert len(caught.value.complaints) == 3


@pytest.mark.slow
def test_175b_on_512_devices() -> None:
    """64 groups for the rows, 8 devices for each matrix."""
    model = size("175b", 50257)  # GPT-3's ids
    assert wrong_shapes(model, 64, 8) == []
    fullest = max(elements(expected_shapes(model, 64, 8, rank)) for rank in (0, 511))
    assert (
        fullest == 341_475_456
    )  # an equal share would be 341,023,944; in float32 5.09 GiB of weights, gradients, state
    assert_four_processes_train_like_one(model)
