from __future__ import annotations

import pytest

from modules.config.loader import ConfigError, load_config
from modules.model.decoder import parameter_count
from modules.training.planning import rehearsal
from modules.training.planning.rehearsal import elements, expected_shapes
from pipelines import rehearse as pipeline
from pipelines.rehearse import RehearsalError, rehearse


def config_of(*arguments: str, model: str = "tiny") -> pipeline.RehearseConfig:
    config: pipeline.RehearseConfig = load_config("rehearse", [f"model={model}", *arguments])
    return config


def test_a_small_layout_holds_and_computes_what_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    result = rehearse(config_of("nodes=3", "devices=4", "tensor_parallel=2", "model.vocab_size=301"))
    assert result.difference <= 1e-5
    assert "6 × 2 devices" in capsys.readouterr().out
    config = config_of("model.vocab_size=301").model
    per_rank = [elements(expected_shapes(config, 6, 2, rank)) for rank in range(12)]
    assert result.parameters == max(per_rank)


@pytest.mark.parametrize(("data_parallel", "tensor_parallel"), [(1, 1), (3, 1), (1, 4), (5, 4), (200, 2)])
def test_every_element_lies_somewhere(data_parallel: int, tensor_parallel: int) -> None:
    """Row-cut and column-cut parameters once over all ranks, the others once over each data-parallel group."""
    model = config_of("model.vocab_size=301").model
    ranks = [expected_shapes(model, data_parallel, tensor_parallel, r) for r in range(data_parallel * tensor_parallel)]
    whole = expected_shapes(model, 1, 1, 0)
    assert elements(whole) == parameter_count(model)
    for name in whole:
        cut = name.endswith((*rehearsal.ROW_CUT, *rehearsal.COLUMN_CUT)) or name == "word_embeddings.weight"
        copies = 1 if cut else tensor_parallel
        assert sum(elements({name: shapes[name]}) for shapes in ranks) == copies * elements({name: whole[name]}), name


def test_a_wrong_plan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if attention's output matrix were cut by rows."""
    monkeypatch.setattr(rehearsal, "COLUMN_CUT", ("dense_4h_to_h.weight",))
    with pytest.raises(RehearsalError, match=r"rank 0 doesn't hold what it should: .*attention\.dense\.weight is"):
        rehearse(config_of("devices=4", "tensor_parallel=2"))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("nodes=3", "devices=3", "tensor_parallel=8", "tokens=3000")
    assert len(caught.value.complaints) == 3


@pytest.mark.slow
def test_175b_on_512_devices() -> None:
    result = rehearse(config_of("nodes=64", "devices=8", "tensor_parallel=8", model="175b"))
    assert result.parameters == 341_475_456
    assert result.difference <= 1e-5
