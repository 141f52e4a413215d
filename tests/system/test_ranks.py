"""Which process of a job this is, by the variables of torchrun and SLURM."""

from __future__ import annotations

import os

import pytest

from modules.system.signals import forget_empty_ranks, is_main_process, is_worker

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.mark.parametrize(
    ("job", "first", "worker"),
    [
        ({}, True, False),
        (dict.fromkeys(NAMES, ""), True, False),
        ({"RANK": "", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, False, True),
        ({"RANK": "", "SLURM_PROCID": "0", "SLURM_NTASKS": ""}, True, False),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, True, False),
    ],
)
def test_an_empty_variable_is_as_one_that_is_not_set(
    job: dict[str, str], first: bool, worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert (is_main_process(), is_worker()) == (first, worker)
    forget_empty_ranks()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == {n: v for n, v in job.items() if v}
