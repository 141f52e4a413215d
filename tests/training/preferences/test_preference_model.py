"""Training on pairs: exact however it is split, resumed or shared; begun at a model folder, ending with another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.checkpoint.loading import load_model, open_tokenizer
from modules.config.loader import ConfigError, load_config
from modules.config.preferences.preference import PreferenceConfig
from modules.config.training import TrainConfig
from modules.data.encoding import encode_rows
from modules.data.packing import StepBatch, make_step
from modules.data.preferences.pair_packing import PairBatch, Pairs
from modules.data.rows import load_rows
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.checkpoints.resume import given_checkpoint
from modules.training.fit import fit
from modules.training.preferences.preference_model import PreferenceModel
from pipelines.prefer import prefer
from pipelines.train import set_up_training
from tests.helpers.layouts import Recorder, train_layout
from tests.helpers.models import make_config, make_decoder, save_model

LOSSES = ["dpo", "orpo"]
QUICK = [
    "train.init_from=start", "train.batch_size=5", "train.micro_batch_tokens=120", "train.schedule=constant",
    "train.warmup_steps=1", "train.learning_rate=1e-3", "train.max_epochs=null", "data.sequence_length=90",
    "data.validation_fraction=0.2", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.progress_bar=false", "preference.beta=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(poems: dict[str, list[str]]) -> list[dict[str, str]]:
    texts = [text.replace("\n", "") for text in poems["train"] if "，" in text[1:20]][:20]
    parted = [text.split("，", 1) for text in texts]
    return [
        {"prompt": f"{a}，", "chosen": b[: 9 + n], "rejected": b[n : 40 - n][::-1]} for n, (a, b) in enumerate(parted)
    ]


@pytest.fixture
def start(store: Path, tokenizer: Tokenizer) -> Path:
    """A model folder with dropout, as published models have it."""
    config = make_config(tokenizer.vocab_size, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    return save_model(store / "start", make_decoder(config, spread=2.0), tokenizer, {})


def curve(rows: Any, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What is logged of each step and validation."""
    config = load_config("prefer", [*QUICK, *arguments])
    recorder, given = Recorder(), config.train.resume_from
    checkpoint = given_checkpoint(given) if given not in (None, "auto") else None
    fit("prefer", config, set_up_training(config, rows), folder, recorder, checkpoint=checkpoint)
    return recorder.rows


def column(logged: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in logged if name in row]


def gradient(module: PreferenceModel, step: StepBatch, pairs: int, chosen_tokens: int) -> torch.Tensor:
    module.pairs, module.chosen_tokens = pairs, chosen_tokens
    module.zero_grad()
    for batch in step.micro_batches:
        (module._step(batch) / module.pairs).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_steps_gradient_does_not_depend_on_how_it_is_split(
    loss: Any, rows: list[dict[str, str]], tokenizer: Tokenizer
) -> None:
    documents = encode_rows(load_rows(rows[:6], pairs=True), tokenizer, 90)
    reference = np.random.default_rng(1).normal(-30, 5, (6, 2)).astype(np.float32)
    pairs = Pairs.of(documents, reference=reference, whole_texts=loss == "orpo")
    config = PreferenceConfig(loss, 0.5)
    decoder = make_decoder(make_config(tokenizer.vocab_size), spread=2.0)
    module = PreferenceModel(decoder, TrainConfig(max_steps=1), 1e-3, 1, preference=config)
    everything = np.arange(6)
    (one,) = make_step(pairs, everything, 10_000).micro_batches
    assert isinstance(one, PairBatch)
    counts = 6, one.chosen_tokens
    whole = gradient(module, make_step(pairs, everything, 10_000), *counts)
    for tokens in (1, 150):
        step = make_step(pairs, everything, tokens)
        assert len(step.micro_batches) > 1
        assert float((gradient(module, step, *counts) - whole).norm() / whole.norm()) < 1e-5
    shared = sum(gradient(module, make_step(pairs, everything, 150, rank, 2), *counts) for rank in range(2))
    assert float((shared - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("adapters", [[], ["lora.rank=2"]], ids=["whole", "lora"])
def test_dpo_begins_at_the_model_it_starts_from(adapters: list[str], rows: Any, start: Path, tmp_path: Path) -> None:
    """Where nothing has been learnt all rewards are 0, and the loss is log 2, in spite of dropout; then it falls."""
    logged = curve(rows, tmp_path / "run", "train.max_steps=20", "train.validate_every_n_steps=10", *adapters)
    losses = column(logged, "train/loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert column(logged, "train/reward_margin")[0] == pytest.approx(0, abs=1e-5)
    assert losses[-1] < (0.1 if not adapters else 0.69)
    last = logged[-1] if "val/loss" in logged[-1] else [row for row in logged if "val/loss" in row][-1]
    assert set(last) == {
        "step", "val/loss", "val/perplexity", "val/reward_accuracy", "val/reward_margin", "val/reward_chosen",
        "val/reward_rejected",
    }  # fmt: skip
    assert last["val/reward_margin"] == pytest.approx(last["val/reward_chosen"] - last["val/reward_rejected"], rel=1e-5)
    assert column(logged, "train/reward_accuracy")[-1] == 1.0


def test_orpo_learns_the_chosen_texts_too(rows: Any, start: Path, tmp_path: Path) -> None:
    every = "train.validate_every_n_steps=10"
    logged = curve(rows, tmp_path / "run", "preference.loss=orpo", "train.max_steps=20", every)
    losses = column(logged, "train/loss")
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] > 3  # the mean of a token, where DPO would be at log 2


@pytest.mark.parametrize("arguments", [[], ["preference.loss=orpo"], ["lora.rank=2"]], ids=["dpo", "orpo", "lora"])
def test_a_resumed_run_goes_on_bit_for_bit(arguments: list[str], rows: Any, start: Path, tmp_path: Path) -> None:
    """Beside the model that the first run started from, not the checkpoint's; in the middle of an epoch."""
    whole = curve(rows, tmp_path / "whole", "train.max_steps=9", *arguments)
    curve(rows, tmp_path / "first", "train.max_steps=5", *arguments)
    last = f"train.resume_from={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    rest = curve(rows, tmp_path / "rest", "train.max_steps=9", last, *arguments)
    for name in ("train/loss", "train/reward_margin", "grad_norm"):
        assert column(rest, name) == column(whole, name)[5:]


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_as_one_does(loss: str, rows: Any, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    given = [*QUICK, f"train.init_from={start}", f"data.path={path}", "train.max_steps=4", f"preference.loss={loss}"]
    found = []
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        arguments = [*given, f"trainer.devices={processes}"]
        found.append(train_layout(folder, processes, arguments, "prefer")["rows"])
    for name in ("train/loss", "train/reward_margin", "grad_norm", "val/loss", "val/reward_margin"):
        one, two = (column(each, name) for each in found)
        assert len(one) == len(two) > 0
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_the_outcome_is_a_model_folder_like_any_other(rows: Any, start: Path, store: Path) -> None:
    given = [*QUICK, "train.max_steps=12", "output_dir=out"]
    result = prefer(load_config("prefer", given), rows)
    assert result.model == Path("out/model")
    assert result.metrics is not None
    assert result.metrics["val/reward_accuracy"] >= 0.5
    assert open_tokenizer(result.model).prompt_template is None  # preferences teach no prompt
    decoder, tokenizer = load_model(result.model), open_tokenizer(result.model)
    assert TextGenerator(decoder, tokenizer)("白日依山尽，", max_new_tokens=3)["text"].startswith("白日依山尽，")
    again = prefer(load_config("prefer", given), rows)
    assert again.run_id == result.run_id  # it was done before


def test_a_model_is_asked_afterwards_as_it_was_before(rows: Any, store: Path, tokenizer: Tokenizer) -> None:
    """With the templates of all its tasks; and prompts are cut where its training cut them, those of pairs too."""
    tuned = tokenizer.with_prompt_template("{src_txt}？", {"translate": "{src_txt}\n译："}).with_source_limit(3)
    save_model(store / "start", make_decoder(make_config(tokenizer.vocab_size)), tuned, {})
    result = prefer(load_config("prefer", [*QUICK, "train.max_steps=1", "output_dir=out", "lora.rank=2"]), rows)
    assert result.model is not None
    assert open_tokenizer(result.model).fingerprint == tuned.fingerprint
    setup = prefer(load_config("prefer", [*QUICK, "train.max_steps=1", "dry_run=true"]), rows).setup
    assert setup is not None
    begin, pairs = tuned.encode_prompt(rows[0]["prompt"]), setup.data.documents["train"]
    assert len(begin) == len(tuned.start_ids) + 3 + 1
    assert begin in [pairs.ids_of(number)[: len(begin)].tolist() for number in range(len(pairs))]


def test_the_best_checkpoint_may_be_chosen_by_what_is_written(rows: Any, start: Path, tmp_path: Path) -> None:
    """The prompts are continued, as a model without a template continues its prompts."""
    score = ["train.select_by=repeated_characters", "task.rows=2", "generation.max_new_tokens=8"]
    logged = curve(rows, tmp_path / "run", "train.max_steps=4", *score)
    assert len(column(logged, "val/repeated_characters")) == 1


def test_a_dry_run_says_what_will_be_done(rows: Any, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefer(load_config("prefer", [*QUICK, "train.max_steps=4", "dry_run=true"]), rows)
    said = capsys.readouterr().out
    assert "preferences" in said
    assert "dpo, beta 0.5" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.init_from=null"], r"train\.init_from must be given"),
        (["train.init_from=null", "model=tiny"], r"train\.init_from must be given"),
        (["preference.beta=0"], r"preference\.beta \(0\.0\) must be a positive number"),
        (["preference.loss=ppo"], r"preference\.loss=ppo.*dpo \| orpo"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("prefer", ["train.init_from=models/poems", "data.path=pairs.jsonl", *arguments])
