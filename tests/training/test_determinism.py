"""Deterministic kernels around a step alone."""

from __future__ import annotations

import pytest
import torch

from modules.training.determinism import deterministic_kernels


@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_ends_with_the_step(wanted: bool) -> None:
    @deterministic_kernels(wanted)
    def failing_step() -> None:
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert not bool(torch.empty(1000).isnan().all())  # what torch would fill new memory with
        raise ValueError("a step failed")

    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="a step failed"):
        failing_step()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
