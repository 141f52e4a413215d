"""What a model is called in titles."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modules.config.base import CHINESE, POEMS, model_folder
from modules.evaluation.report.naming import model_name, rows


@pytest.mark.parametrize("place", [POEMS, CHINESE])
def test_a_model_that_comes_with_moyun_goes_by_its_folder(place: str) -> None:
    assert model_name(place, model_folder(place)) == place


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["verse", "prose"], "10 rows of verse, 10 rows of prose"),
        (["verse", "prose", "laws", "couplets"], "40 rows of 4 sources"),
    ],
)
def test_a_mixture_of_many_sources_is_counted(sources: list[str], said: str, tmp_path: Path) -> None:
    counts = {f"{split}/{name}": 10 for split in ("train", "validation") for name in sources}
    facts = {"rows": counts, "config": {"data": {"mix": [{"name": name} for name in sources]}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
    assert rows(tmp_path) == said
