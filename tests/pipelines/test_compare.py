"""Two real tiny runs: the same is told to be the same, to the last bit; what differs is named, and where it shows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import datasets
import pytest

from modules.config.loader import ConfigError, load_config
from modules.tracking.run_comparison import Difference, compare_runs, find_parting
from modules.tracking.run_facts import RunFacts, read_run
from pipelines.cli.command_line import with_positions
from pipelines.compare import compare
from pipelines.train import TrainResult, train
from tests.checkpoint.test_training_checkpoint import QUICK

Train = Callable[..., TrainResult]


@pytest.fixture
def trained(store: Path, rows: datasets.Dataset) -> Train:
    def run(*arguments: str, count: int = 60) -> TrainResult:
        config = load_config("pretrain", ["model=tiny", *QUICK, "train.max_steps=6", *arguments])
        config.tracking.log_system_metrics = False
        return train("pretrain", config, {"src_txt": rows["src_txt"][:count]})

    return run


def compared(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    compare(load_config("compare", with_positions(list(arguments), "one", "other")))
    return capsys.readouterr().out


def test_the_same_command_twice_makes_no_difference(
    trained: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance = import_module("modules.tracking.provenance")  # the package has a function of that name
    monkeypatch.setattr(provenance, "git_state", lambda: {"git.commit": "c", "git.dirty": "false"})
    one, other = trained("output_dir=a"), trained("output_dir=b")
    said = compared(one.run_id, other.run_id, capsys=capsys)
    assert "first difference  no difference; losses agree to the last bit" in said
    assert "6 steps" in said
    assert "(equal)" in said


def test_another_learning_rate_is_named_and_shows_at_the_second_step(
    trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = trained(), trained("train.learning_rate=0.01")
    said = compared(one.run_id, str(other.model), capsys=capsys)  # an id, and the folder of the other one's model
    assert "first difference  config: train.learning_rate: None / 0.01; losses part at step 2" in said


def test_other_rows_are_told_by_their_fingerprint_not_their_place(trained: Train) -> None:
    one, other = (read_run(trained("output_dir=" + name, count=n).run_id) for name, n in (("a", 60), ("b", 61)))
    found = compare_runs(one, other)
    assert found.first
    section, difference = found.first
    assert (section, difference.key) == ("data", "train")
    assert found.parting.bitwise == 1


def test_a_folder_whose_run_the_store_does_not_know_tells_what_stands_in_it(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained("output_dir=a")
    whole = read_run(made.run_id)
    shutil.copytree("a", tmp_path / "elsewhere")
    assert read_run("a") == RunFacts(**(vars(whole) | {"name": "a"}))
    monkeypatch.setattr("modules.tracking.run_facts.run_of", lambda *_, **__: None)
    copied = read_run(str(tmp_path / "elsewhere"))
    assert copied.losses == {}
    assert (copied.code, copied.environment, copied.data) == (whole.code, whole.environment, whole.data)
    found = compare_runs(whole, copied)
    assert (found.first, found.parting.steps) == (None, 0)
    shutil.rmtree(tmp_path / "elsewhere" / "model")  # as of a run that was interrupted
    assert compare_runs(whole, read_run(str(tmp_path / "elsewhere"))).first is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "nowhere"], "no run id .* and no folder"),
        (["0" * 32, "0" * 32], "not found.*tracking.tracking_uri"),
        ([".", "."], "tells of no run"),
    ],
)
def test_what_is_no_run_is_refused_by_name(store: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(load_config("compare", with_positions(arguments, "one", "other")))


def test_a_store_with_a_password_is_named_without_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: "postgresql://me:canary@host/db")
    with pytest.raises(ValueError, match="not found") as error:
        read_run("0" * 32)
    assert "canary" not in str(error.value)


def test_three_runs_or_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="'c' isn't understood"):
        load_config("compare", with_positions(["a", "b", "c"], "one", "other"))
    with pytest.raises(ConfigError, match="other must be given"):
        load_config("compare", with_positions(["a"], "one", "other"))


def test_losses_part_in_the_last_bit_first_and_beyond_rounding_later() -> None:
    one = {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0, 5: math.nan}
    other = {2: 4.0, 3: math.nextafter(3.0, 4.0), 4: 2.1, 5: math.nan, 6: 1.0}
    found = find_parting(one, other, 1e-4)
    assert (found.steps, found.bitwise, found.beyond) == (4, 3, 4)
    assert found.largest == pytest.approx(0.1 / 2.1)
    assert find_parting({1: math.nan}, {1: 1.0}, 1e-4).beyond == 1


def test_the_stage_comes_first_and_what_changes_nothing_is_left_out() -> None:
    config = {"output_dir": "a", "trainer.devices": 1, "train.learning_rate": 1e-3}
    one = RunFacts("1", stage="pretrain", config=config)
    other = RunFacts("2", stage="pretrain", config=config | {"output_dir": "b", "trainer.devices": 2})
    assert compare_runs(one, other).first is None
    finetuned = RunFacts("2", stage="finetune", config=config)
    assert compare_runs(one, finetuned).first == ("config", Difference("stage", "pretrain", "finetune"))


def test_a_section_that_one_run_does_not_have_is_one_difference() -> None:
    one = RunFacts("1", stage="finetune", config={"model.hidden_size": 8, "model.layers": 2, "seed": 1})
    other = RunFacts("2", stage="finetune", config={"model": None, "seed": 2})
    found = compare_runs(one, other).differences["config"]
    assert found == [Difference("model", "given", "None"), Difference("seed", "1", "2")]
