"""The trials of a sweep: which values come next, what survives a kill, and what is counted."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from modules.config.loader import load_config
from modules.config.sweeps.space import read_space
from modules.evaluation.sweeps.early_end import EarlyEnd
from modules.evaluation.sweeps.study import JOURNAL, Study
from modules.evaluation.sweeps.trial_outcome import STOPPED_AT, Outcome, trial_name

RANGES = ["space.train.learning_rate=log 1e-5..1e-2", "space.lora.rank=0,8", "trials=8"]
LISTS = ["space.train.learning_rate=1e-3,1e-4,1e-5", "space.lora.rank=0,8"]


def study_in(folder: Path, *arguments: str) -> Study:
    config = load_config("sweep", ["train.init_from=models/poems", *arguments])
    return Study(folder, config, read_space(config))


def score(one: Outcome) -> float:
    return float(one.values["train.learning_rate"]) + (one.values["lora.rank"] == "8")


def run(study: Study, trials: int) -> list[dict[str, str]]:
    for _ in range(trials):
        if one := study.next_trial():
            study.tell(one.number, score(one), {"seconds": 1.0})
    return [one.values for one in study.outcomes()]


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_sweep_that_was_killed_draws_what_it_would_have_drawn(tmp_path: Path, method: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    arguments = [*RANGES, f"method={method}"]
    expected = run(study_in(tmp_path / "whole", *arguments), 8)
    for _ in range(8):  # a process for each trial
        found = run(study_in(tmp_path / "killed", *arguments), 1)
    assert found == expected
    assert len({tuple(values.values()) for values in expected}) == 8


@pytest.mark.parametrize("seed", [1, 2, 3, 42])
def test_the_first_trials_leave_no_large_gaps(tmp_path: Path, seed: int) -> None:
    """With seed 42 the first three random draws are nearly the same rate."""
    found = run(study_in(tmp_path, *RANGES, "trials=18", f"seed={seed}"), 6)
    places = sorted((math.log10(float(values["train.learning_rate"])) + 5) / 3 for values in found)
    assert max(np.diff([0.0, *places, 1.0])) < 0.4
    assert len({round(place * 6 - 0.5) for place in places}) >= 4
    assert {values["lora.rank"] for values in found} == {"0", "8"}


def test_another_seed_draws_other_values(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert run(study_in(tmp_path, *RANGES), 3) != run(study_in(tmp_path / "other", *RANGES, "seed=7"), 3)


def test_a_grid_is_every_combination_once_and_no_more(tmp_path: Path) -> None:
    study = study_in(tmp_path, *LISTS)
    assert (study.method, study.limit) == ("grid", 6)
    found = [tuple(values.values()) for values in run(study, 9)]
    assert found == [(rate, rank) for rate in ("1e-3", "1e-4", "1e-5") for rank in ("0", "8")]


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_no_values_are_tried_twice_and_all_of_them_in_the_end(tmp_path: Path, method: str) -> None:
    study = study_in(tmp_path, *LISTS, f"method={method}", "trials=20")
    assert len({tuple(values.values()) for values in run(study, 20)}) == len(study.outcomes()) == study.limit == 6


def test_a_trial_that_was_at_work_is_known_with_its_values(tmp_path: Path) -> None:
    study = study_in(tmp_path, *RANGES)
    begun = study.next_trial()
    assert begun
    assert study_in(tmp_path, *RANGES).interrupted() == [begun]


def test_so_is_one_whose_values_were_just_being_drawn(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    expected = run(study_in(tmp_path / "whole", *RANGES), 1)
    study = study_in(tmp_path, *RANGES)
    study.enqueue(0)
    study.optuna_study.ask()  # and killed before it has values
    assert [one.values for one in study_in(tmp_path, *RANGES).interrupted()] == expected


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_kill_at_any_line_of_the_journal_repeats_no_values(tmp_path: Path, method: str) -> None:
    arguments = [*LISTS, f"method={method}", "trials=20"]
    (tmp_path / "whole").mkdir()
    expected = run(study_in(tmp_path / "whole", *arguments), 20)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert any(b"same_as" in line for line in lines)  # a value was drawn twice, or this shows nothing
    for end in range(2, len(lines)):
        (folder := tmp_path / f"{end}").mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:end]))
        study = study_in(folder, *arguments)
        for one in study.interrupted():
            study.tell(one.number, score(one), {"seconds": 1.0})
        assert run(study, 20) == expected


def test_a_trial_that_the_pruner_would_have_stopped_and_that_goes_on_after_a_kill_is_ranked(tmp_path: Path) -> None:
    study = study_in(tmp_path, *LISTS)
    one = study.next_trial()
    assert one
    study.keep(one.number, STOPPED_AT, 20)  # and killed before the trial came to its end
    again = study_in(tmp_path, *LISTS)
    EarlyEnd(again, one.number).on_fit_start(Mock(), Mock())
    again.tell(one.number, 1.0, {})
    assert [each.number for each in again.ranked()] == [one.number]


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    run(study_in(tmp_path, *RANGES), 2)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"abc')
    study = study_in(tmp_path, *RANGES)
    assert len(run(study, 1)) == 3
    assert len(study_in(tmp_path, *RANGES).outcomes()) == 3


def test_trials_are_ranked_by_what_is_better_and_failures_are_counted(tmp_path: Path) -> None:
    for direction, best in (("minimize", 0), ("maximize", 3)):
        folder = tmp_path / direction
        folder.mkdir()
        study = study_in(folder, *LISTS, f"direction={direction}")
        for value in (1.0, 2.0, None, 3.0, 1.5):
            one = study.next_trial()
            assert one
            if value == 1.5:
                study.keep(one.number, STOPPED_AT, 20)
            study.tell(one.number, value, {}, None if value else "the loss is nan")
        assert study.ranked()[0].number == best
        states = [one.state for one in study_in(folder, *LISTS, f"direction={direction}").outcomes()]
        assert states == ["finished", "finished", "failed", "finished", "stopped"]
        assert study.outcomes()[2].reason == "the loss is nan"
        assert study.outcomes()[4].stopped_at == 20


def test_importances_are_those_of_the_key_that_decides(tmp_path: Path) -> None:
    study = study_in(tmp_path, *RANGES, "trials=40")
    for _ in range(40):
        one = study.next_trial()
        assert one
        study.tell(one.number, float(one.values["train.learning_rate"]), {})
    found = study.importances()
    assert found["train.learning_rate"] > 0.9 > 0.1 > found["lora.rank"]


def test_a_trials_name_is_what_differs() -> None:
    assert trial_name({"train.learning_rate": "1e-3", "lora.rank": "8"}) == "lr=1e-3 rank=8"
    assert trial_name({"train.seed": "1", "data.seed": "2"}) == "train.seed=1 data.seed=2"
