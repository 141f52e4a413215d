"""Conversations from a file to a model that is scored: prepare, finetune, evaluate, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import torch

from modules.checkpoint.loading import load_model, load_verified
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.data.conversations.message_rows import stored_messages
from modules.data.rows import load_rows
from modules.evaluation.likelihood import score
from modules.inference.prediction.source_rows import Source
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.prompt_template import TURNS_TEMPLATE, encode_turns, ids_of, read_messages
from modules.tokenizer.tokenizer import Tokenizer
from pipelines import pipeline
from pipelines.evaluate import EvaluateResult, evaluate
from pipelines.finetune import finetune
from pipelines.predict import predict
from pipelines.prepare import prepare
from pipelines.train import TrainResult
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.predictions import read

QUIET = ["tracking.log_system_metrics=false", "trainer.accelerator=cpu", "trainer.progress_bar=false"]
NUMBERS = "一二三四五六七八九十"
SUMS = [
    [f"{a}加{b}", f"{a}和{b}", f"再加{c}", f"{a}和{b}和{c}"]
    for a, b, c in zip(NUMBERS, NUMBERS[1:], NUMBERS[2:], strict=False)
]
SAID = [*SUMS, *([f"写{text}", text, "谢谢", "不客气"] for text in "春夏秋冬山水风花雪月日星")]


def talk(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def chat(store: Path) -> Path:
    """Twenty conversations of two turns."""
    assert len(SAID) == 20
    path = store / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": talk(said)}, ensure_ascii=False) + "\n" for said in SAID))
    return path


@pytest.fixture
def base(store: Path, tokenizer: Tokenizer) -> Path:
    return save_model(store / "base", make_decoder(make_config(tokenizer.vocab_size), spread=1), tokenizer, {})


def tune(base: Path, *arguments: object) -> TrainResult:
    keys = [f"train.init_from={base}", "data.sequence_length=64", "train.max_epochs=2", "train.batch_size=4"]
    return finetune(load_config("finetune", [*QUIET, *keys, *map(str, arguments)]))


def weights_of(found: TrainResult) -> dict[str, torch.Tensor]:
    assert found.model
    return load_model(found.model).state_dict()


def scored(model: Path, *arguments: object) -> EvaluateResult:
    keys = [f"model={model}", "generation.max_new_tokens=8", "generation.temperature=0"]
    return evaluate(load_config("evaluate", ["tracking.log_system_metrics=false", *keys, *map(str, arguments)]))


def test_prepare_finetune_evaluate(chat: Path, base: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = prepare(load_config("prepare", [f"source={chat}", "validation_fraction=0.1", "test_fraction=0.2"]))
    assert "prepare: conversations in prepared/chat" in capsys.readouterr().out
    found = tune(base, f"data.path={made.folder}")
    printed = capsys.readouterr().out
    assert found.model
    decoder, tokenizer = load_verified(found.model)
    assert tokenizer.prompt_template == TURNS_TEMPLATE
    rows = load_rows(made.folder, split="train")
    answers = [text for row in rows["messages"] for role, text in stored_messages(row) if role == "assistant"]
    trained = sum(len(tokenizer.encode(text)) + 1 for text in answers)
    assert f"{trained:,} trained on" in " ".join(printed.split())

    likelihoods = score(decoder, tokenizer, load_rows(made.folder, split="validation"))
    logged = mlflow.MlflowClient().get_run(found.run_id).data.metrics
    assert logged["val/perplexity_per_char"] == pytest.approx(likelihoods.perplexity_per_char.value, rel=1e-4)

    test = load_rows(made.folder, split="test")
    result = scored(found.model, f"data.path={made.folder}", "task=instructions", "task.metrics=[perplexity,rouge]")
    model = result.evaluations["model"]
    assert [row.references for row in model.rows] == [[text] for text in test["tgt_txt"]]
    assert model["perplexity"].value == pytest.approx(score(decoder, tokenizer, test).perplexity.value, rel=1e-5)
    assert {"bigram", "nearest"} <= result.evaluations.keys()


def test_evaluate_asks_what_the_servers_chat_would(chat: Path, base: Path, tokenizer: Tokenizer) -> None:
    found = scored(base, f"data.test_path={chat}", "data.path=null", "task=instructions", "task.metrics=[exact_match]")
    tuned = tokenizer.with_prompt_template(TURNS_TEMPLATE)
    generator = TextGenerator(load_verified(base)[0], tuned, GenerationConfig(max_new_tokens=8, temperature=0))
    asked = [ids_of(encode_turns(read_messages(talk(said)[:-1]), tuned)) for said in SAID]
    expected = [generator.write_ids([ids])[0].text for ids in asked]
    assert [row.text for row in found.evaluations["model"].rows] == expected


def test_a_checkpoint_is_chosen_by_texts_and_training_goes_on_bit_for_bit(chat: Path, base: Path, store: Path) -> None:
    keys = [f"data.path={chat}", "data.validation_fraction=0.2", "train.select_by=exact_match", "train.max_epochs=null"]
    keys += ["train.schedule=constant", "train.validate_every_n_steps=2", "generation.max_new_tokens=4"]
    whole = tune(base, *keys, "train.max_steps=6", "output_dir=whole")
    tune(base, *keys, "train.max_steps=4", "output_dir=first")
    keys += ["train.resume_from=first/checkpoints/last.ckpt", "train.allow_changed=[train.max_steps]"]
    rest = tune(base, *keys, "train.max_steps=6", "output_dir=rest")
    assert "val/exact_match" in mlflow.MlflowClient().get_run(rest.run_id).data.metrics
    expected = weights_of(whole)
    assert all(torch.equal(found, expected[name]) for name, found in weights_of(rest).items())


def test_few_shot_shows_earlier_turns_as_examples(chat: Path, base: Path, store: Path) -> None:
    prepare(load_config("prepare", [f"source={chat}", "validation_fraction=0.1", "test_fraction=0.2"]))
    keys = ["data.path=prepared/chat", "task=instructions", "task.metrics=[perplexity,exact_match]", "task.examples=1"]
    found = scored(base, *keys).evaluations
    test = load_rows(store / "prepared" / "chat", split="test")
    expected = [len(text) + 1 for text in test["tgt_txt"]]
    for who in ("model", "unigram", "bigram", "trigram"):  # all of the last answer alone
        assert found[who]["perplexity_per_char"].statistics[:, 1].tolist() == expected


def test_a_dry_run_counts_what_is_cut(chat: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(
        load_config(
            "finetune",
            [*QUIET, f"train.init_from={base}", f"data.path={chat}", "data.sequence_length=14", "dry_run=true"],
        )
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "cut)" in printed
    assert "conversations" in printed


def test_predict_answers_the_last_question(chat: Path, base: Path, store: Path, tokenizer: Tokenizer) -> None:
    rows = [{"messages": talk(SAID[0])}, {"messages": talk(SAID[1][:3])}, {"messages": talk(SAID[2])[1:]}]
    (store / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tuned = save_model(store / "tuned", load_model(base), tokenizer.with_prompt_template(TURNS_TEMPLATE), {})
    answered = predict(
        load_config(
            "predict",
            [
                "tracking.log_system_metrics=false",
                f"model={tuned}",
                "source=rows.jsonl",
                "target=out.jsonl",
                "max_new_tokens=8",
                "temperature=0",
            ],
        )
    )
    generator = TextGenerator(*load_verified(tuned), GenerationConfig(max_new_tokens=8, temperature=0))
    asked = [ids_of(encode_turns(read_messages(talk(said[:3])), generator.tokenizer)) for said in SAID[:2]]
    expected = [generator.write_ids([ids])[0].text for ids in asked]
    found = read(store / "out.jsonl")
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]
    lines = [f"{role}: {text}" for role, text in zip(("user", "assistant", "user"), SAID[0], strict=False)]
    assert answered.written.samples[0]["prompt"] == "\n".join(lines)
    assert [row["text"] for row in found] == [*expected, None]
    assert "a message has the role assistant and comes first" in found[2]["error"]
    (store / "texts.jsonl").write_text('{"src_txt": "春"}\n')
    for source, full in (("rows.jsonl", False), ("texts.jsonl", True)):  # of a model without a template
        opened = Source(load_config("predict", [f"source={source}"]))
        opened.survey()
        assert opened.answered_in_full(tokenizer) is full
    mapped = list(pipeline(model=str(tuned)).map(rows, max_new_tokens=8, temperature=0))
    assert [row["text"] for row in mapped] == [*expected, None]
