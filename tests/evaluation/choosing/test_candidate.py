"""By which score a model is chosen, against whom, and what is said of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from modules.config.evaluation import RegisterConfig
from modules.config.loader import ConfigError, load_config
from modules.evaluation.choosing.measure import measure_of, settle_measure
from modules.evaluation.promotion import Guard, decide
from modules.evaluation.statistics import Metric, mean, perplexity
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.tracking.registry import register_version
from pipelines.register import RegisterResult, register
from tests.helpers.models import make_config, make_decoder, save_model

QUIET = ["tracking.log_system_metrics=false", "generation.max_new_tokens=6", "generation.temperature=0"]
PAIRS = [{"src_txt": f"春眠不觉晓{n}。处处闻啼鸟", "tgt_txt": f"夜来风雨声{n % 7}"} for n in range(40)]


def settled(*arguments: str) -> RegisterConfig:
    config: RegisterConfig = load_config("register", ["model=m", *arguments])
    return settle_measure(config)


@pytest.mark.parametrize(
    ("arguments", "measure", "metrics"),
    [
        ([], "perplexity_per_char", ["perplexity"]),
        (["task=poetry"], "perplexity_per_char", ["perplexity"]),
        (["task=couplets"], "perplexity_per_char", ["perplexity"]),
        (["task=summarization"], "rougeL", ["perplexity", "rouge"]),
        (["task=question_generation"], "bleu", ["perplexity", "bleu"]),
        (["task=data_to_text"], "bleu", ["perplexity", "bleu"]),
        (["task=instructions"], "rougeL", ["perplexity", "rouge"]),
        (["task=multiple_choice"], "choice_accuracy", ["perplexity", "choices"]),
        (["task.metrics=[perplexity, slots]"], "slot_error_rate", ["perplexity", "slots"]),
        (["measure=rouge1"], "rouge1", ["perplexity", "rouge"]),
        (["task=question_generation", "measure=perplexity_per_char"], "perplexity_per_char", ["perplexity"]),
        (["task=couplets", "measure=tones_oppose"], "tones oppose", ["perplexity", "couplet"]),
        (["measure=exact_match", "guard.rougeL=0.1"], "exact_match", ["perplexity", "rouge", "exact_match"]),
    ],
)
def test_the_measure_is_the_tasks_or_the_one_that_is_named(
    arguments: list[str], measure: str, metrics: list[str]
) -> None:
    config = settled(*arguments)
    assert (config.measure, config.task.metrics) == (measure, metrics)
    assert config.ngram_floor == (measure == "perplexity_per_char")
    if not any(argument.startswith("measure=") for argument in arguments):
        assert measure_of(load_config("register", ["model=m", *arguments]).task) == measure


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("measure=rougel", "measure=rougel: no such score; did you mean rougeL?"),
        ("measure=rouge", "measure=rouge: did you mean rougeL?"),
        ("measure=loss", r"measure=loss: no such score; there are perplexity_per_char, choice_accuracy"),
        ("measure=perplexity", "measure=perplexity: no measure to choose by: it is per token"),
        ("measure=length_ratio", "measure=length_ratio: no measure to choose by: a text of the right length may"),
        ("guard.blue=0.1", "guard.blue: no such score; did you mean bleu?"),
        ("guard={length_ratio: 0.1}", "guard.length_ratio: no measure"),
    ],
)
def test_a_measure_that_nothing_computes_is_refused(argument: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said) if "|" not in said else said):
        settled(argument)


def test_a_task_file_may_speak_of_what_evaluate_alone_has(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "prompts: [春]\nngram_floor: false\ntask: {metrics: [bleu]}\n", encoding="utf-8"
    )
    config = settled(f"task={tmp_path / 'mine.yaml'}")
    assert (config.measure, config.ngram_floor) == ("bleu", False)
    with pytest.raises(ConfigError, match="prompts .*no such key"):
        load_config("register", ["model=m", "prompts=[春]"])


@pytest.mark.parametrize("share", ["-0.1", "nan", "1e300"])
def test_a_guard_is_a_share(share: str) -> None:
    with pytest.raises(ConfigError, match=r"guard\.bleu \(.*\) must be a share"):
        load_config("register", ["model=m", f"guard.bleu={share}"])


# --- the test ---


def shifted(by: float, rows: int = 300) -> Metric:
    noise = 0.02 * np.random.default_rng(int(abs(by) * 1e6)).normal(size=rows)
    return perplexity("perplexity_per_char", np.full(rows, 40.0) + 10 * (by + noise), np.full(rows, 10.0))


def rouge(value: float, rows: int = 300) -> Metric:
    return mean("rougeL", np.full(rows, value) + 0.01 * np.random.default_rng(3).normal(size=rows))


def test_higher_is_better_where_it_is() -> None:
    up, down = decide(rouge(0.3), rouge(0.2), "3"), decide(rouge(0.2), rouge(0.3), "3")
    assert (up.promoted, down.promoted, down.verdict) == (True, False, "worse")
    assert up.reason.startswith("moved to it from version 3: better, rougeL 0.3 against 0.2 on the same 300 test rows")
    assert (up.measure, up.tags()["measure"]) == ("rougeL", "rougeL")


def test_a_guard_that_is_broken_keeps_the_alias_and_says_which() -> None:
    better = rouge(0.3), rouge(0.2), "3", 0.05
    for worse, share, kept in [(0.05, 0.02, True), (0.05, 0.1, False), (0.0, 0.02, False), (-0.05, 0.0, False)]:
        found = decide(*better, [Guard(share, shifted(worse), shifted(0.0))])
        assert (found.promoted, found.verdict) == (not kept, "guarded" if kept else "better")
        assert ("but perplexity per char is up to 5." in found.reason) == kept
        assert (f"guard.perplexity_per_char allows {share:.1%}" in found.reason) == kept
    unclear = decide(*better, [Guard(0.02, shifted(0.015), shifted(0.0))])
    assert unclear.promoted
    # Of few rows the middle is within as well, but the far end isn't.
    few = decide(*better, [Guard(0.02, shifted(0.015, 20), shifted(0.0, 20))])
    assert not few.promoted
    assert not decide(*better, [Guard(0.02, shifted(0.0, 1), shifted(0.0, 1))]).promoted  # one row shows nothing


def test_a_guard_of_a_score_where_higher_is_better() -> None:
    better = shifted(-0.1), shifted(0.0), "3", 0.05
    assert not decide(*better, [Guard(0.05, rouge(0.2), rouge(0.3))]).promoted
    assert decide(*better, [Guard(0.05, rouge(0.3), rouge(0.2))]).promoted
    zero = mean("bleu", np.zeros(300))
    assert decide(*better, [Guard(0.05, zero, zero)]).promoted
    assert "perhaps worse" in decide(*better, [Guard(0.05, shifted(0.0, 1), shifted(0.0, 1))]).reason


def test_scores_of_nothing_but_zeros_are_the_same_and_no_error() -> None:
    zero = mean("exact_match", np.zeros(300))
    assert "scores the same on every one of the 300 test rows (exact match 0)" in decide(zero, zero, "1").reason
    some = mean("exact_match", np.arange(300) < 2)
    assert not decide(some, zero, "1").promoted  # undecided, beside a score of 0


def test_one_row_shows_nothing_and_a_score_that_is_none_is_given_nothing() -> None:
    alone = decide(rouge(0.3, 1), rouge(0.2, 1), "1")
    assert not alone.promoted
    assert "nan" not in alone.reason
    none = mean("slot_error_rate", np.full(300, np.nan), higher_is_better=False)
    found = decide(none, None, None)
    assert (found.promoted, found.reason) == (False, "given to none: slot error rate has no value on these rows")


# --- the stage ---


@pytest.fixture
def models(store: Path, tokenizer: Tokenizer) -> list[Path]:
    """Two models that know nothing, and rows of pairs."""
    (store / "rows").mkdir()
    for name, rows in (("train", PAIRS[:20]), ("test", PAIRS[20:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (store / "rows" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    asked = tokenizer.with_prompt_template("{src_txt}：")
    return [
        save_model(store / f"{seed}", make_decoder(make_config(tokenizer.vocab_size), seed), asked, {})
        for seed in (1, 2)
    ]


def registered(model: Path, *arguments: str) -> RegisterResult:
    done = register(load_config("register", [f"model={model}", "data.path=rows", *arguments, *QUIET]))
    assert done
    return done


def test_whoever_loses_to_what_needs_no_model_is_registered_and_told(
    store: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    done = registered(models[0], "task=summarization")
    said = " ".join(capsys.readouterr().out.split())
    assert (done.version, done.promotion.promoted, done.promotion.measure) == ("1", True, "rougeL")
    assert re.search(r"MIND by rougeL the model loses to nearest \(0\.\d+\)", said)
    assert "measure rougeL against nobody: no version is champion yet and against lead, nearest" in said
    client = MlflowClient()
    tags, run = client.get_model_version("moyun", "1").tags, client.get_run(done.run_id).data
    assert tags["loses_to"] == run.tags["loses_to"]
    assert tags["loses_to"].startswith("nearest (0.")
    assert (tags["measure"], tags["test_rougeL"]) == ("rougeL", f"{run.metrics['test/rougeL']:.4f}")
    registered(models[1])
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"MIND by perplexity per char the model loses to unigram \(\d+\.\d\), bigram .*, trigram", said)
    assert (
        "against version 1, the champion, which became it by rougeL; both are scored anew and against n-grams" in said
    )
    assert client.get_model_version("moyun", "2").tags["measure"] == "perplexity_per_char"


@pytest.fixture
def third(store: Path, models: list[Path]) -> Path:
    tokenizer = load_tokenizer(models[0])
    return save_model(store / "3", make_decoder(make_config(tokenizer.vocab_size), 3), tokenizer, {})


@pytest.mark.parametrize(
    ("known", "said"),
    [(15, "on the same 5 test rows"), (20, "undecided, as each test row is a training row of one of the two")],
)
def test_rows_that_one_of_the_two_was_trained_on_do_not_count(
    models: list[Path], third: Path, monkeypatch: pytest.MonkeyPatch, known: int, said: str
) -> None:
    registered(models[0])
    assert "on the same 20 test rows" in registered(models[1]).promotion.reason
    monkeypatch.setattr("modules.evaluation.choosing.candidate.copies_in_training", lambda *_: np.arange(20) < known)
    found = registered(third).promotion
    assert said in found.reason
    assert ("15 more don't count: they are training rows of one of the two" in found.reason) == (known < 20)
    assert not (known == 20 and found.promoted)


def test_who_became_champion_meanwhile_is_the_one_to_beat(
    models: list[Path], third: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(models[0])
    registered(models[1], "alias=second")

    def while_another_moves_it(name: str, *given: Any) -> str:
        MlflowClient().set_registered_model_alias(name, "champion", "2")
        return register_version(name, *given)

    monkeypatch.setattr("pipelines.register.register_version", while_another_moves_it)
    found = registered(third)
    assert found.version == "3"
    assert "version 2" in found.promotion.reason
    assert MlflowClient().get_model_version("moyun", "3").tags["promotion"] == found.promotion.reason


def test_a_measure_that_the_rows_have_nothing_for_is_refused_before_any_score(
    store: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.evaluation.task_evaluation.Task.of_model", lambda *_: pytest.fail("it scores"))
    for dry_run in ("true", "false"):
        with pytest.raises(ValueError, match=r"measure=slot_error_rate: the rows have no slots \(rows of rows/test"):
            registered(models[0], "measure=slot_error_rate", f"dry_run={dry_run}")
        with pytest.raises(ValueError, match=r"guard\.choice_accuracy: the rows have no (choices|answer)"):
            registered(models[0], "guard.choice_accuracy=0.1", f"dry_run={dry_run}")


def test_trivial_answers_that_these_rows_do_not_allow_are_left_out(
    store: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registered(models[0], "data.path=null", "data.test_path=rows/test.jsonl", "measure=bleu")
    assert "and against lead, copy test rows" in " ".join(capsys.readouterr().out.split())
