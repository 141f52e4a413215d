"""Whose a sweep's folder is: the same sweep goes on in it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.config.loader import load_config
from modules.evaluation.sweeps.folder import claimed_sweep
from tests.evaluation.sweeps.test_trials import SPACE


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("space.train.learning_rate=1e-1,1e-2", "space was"),
        ("seed=7", "seed was 42, and is 7"),
        ("train.beta1=0.5", "keys was"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(store: Path, argument: str, words: str) -> None:
    config = load_config("sweep", SPACE)
    with claimed_sweep(config) as folder:
        (folder / "journal.log").touch()
    with (
        pytest.raises(ValueError, match="out holds another sweep: ") as caught,
        claimed_sweep(load_config("sweep", [*SPACE, argument])),
    ):
        pass
    assert words in str(caught.value)


def test_a_sweep_of_other_rows_weights_or_code_in_the_same_folder_is_refused(store: Path) -> None:
    config = load_config("sweep", SPACE)
    with claimed_sweep(config, "a") as folder:
        (folder / "journal.log").touch()
    for origin in ("a", None):  # None: it isn't known
        with claimed_sweep(config, origin):
            pass
    with (
        pytest.raises(ValueError, match="other rows, weights, code or versions of libraries.*another output_dir"),
        claimed_sweep(config, "b"),
    ):
        pass


def test_a_folder_that_is_in_use_or_holds_other_things_is_refused(store: Path) -> None:
    config = load_config("sweep", SPACE)
    with claimed_sweep(config), pytest.raises(ValueError, match="in use by process"), claimed_sweep(config):
        pass
    assert not (store / "out").exists()
    (store / "out").mkdir()
    (store / "out" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds no sweep, but thesis\.txt"), claimed_sweep(config):
        pass
