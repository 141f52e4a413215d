"""How models are asked, what they answer, which choice they take, and what all of it is scored as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from modules.config.data import DataConfig
from modules.config.evaluation import TaskConfig
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.data.conversations.message_rows import default_template
from modules.data.quarantine import DataError
from modules.data.rows import load_rows
from modules.evaluation.answers import batches, write_answers
from modules.evaluation.likelihood import chance, choice_accuracy, score
from modules.evaluation.prompts import build_prompts
from modules.evaluation.task_evaluation import Task
from modules.evaluation.task_rows import GROUP, columns_of, first_of_groups, read_choices, read_task_rows, with_targets
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder

PAIRS = {"src_txt": ["白日依山尽", "欲穷千里目", "春眠不觉晓"], "tgt_txt": ["黄河入海流", "更上一层楼", "处处闻啼鸟"]}
GREEDY = GenerationConfig(max_new_tokens=12, temperature=0)


def pairs(**more: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(PAIRS | more)


def asked(tokenizer: Tokenizer, rows: datasets.Dataset, train: datasets.Dataset | None = None, **task: Any) -> Any:
    positions = task.pop("positions", 96)
    data = DataConfig(prompt_template="{src_txt}，")
    return build_prompts(rows, train, tokenizer, TaskConfig(**task), data, positions, 8, seed=1)


# --- prompts ---


def test_a_model_is_asked_as_it_was_tuned_and_else_as_the_task_says(tokenizer: Tokenizer) -> None:
    tuned = tokenizer.with_prompt_template("问{src_txt}答")
    for given, task, expected in (
        (tuned, {}, "问{src_txt}答"),
        (tuned, {"template": "上{src_txt}下"}, "问{src_txt}答"),
        (tuned, {"template": "上{src_txt}下", "own_template": False}, "上{src_txt}下"),
        (tokenizer, {"template": "上{src_txt}下"}, "上{src_txt}下"),
        (tokenizer, {}, "{src_txt}，"),
    ):
        found = asked(given, pairs(), **task)
        assert found.tokenizer.prompt_template == expected
        assert found.rows["src_txt"] == PAIRS["src_txt"]


def test_examples_come_from_other_training_rows_and_by_the_seed(tokenizer: Tokenizer) -> None:
    train = pairs()
    found = asked(tokenizer, pairs(), train, examples=2, separator="\n")
    assert found.tokenizer.prompt_template == "{src_txt}"
    for source, target, text in zip(PAIRS["src_txt"], PAIRS["tgt_txt"], found.rows["src_txt"], strict=True):
        *solved, question = text.split("\n")
        assert question == f"{source}，"
        others = {f"{s}，{t}" for s, t in zip(*PAIRS.values(), strict=True) if s != source}
        assert set(solved) == others, "never the row itself"
        assert target not in text
    assert found.counts == {"examples_dropped": 0, "prompts_cut": 0}
    again = asked(tokenizer, pairs(), train, examples=2, separator="\n")
    assert again.rows["src_txt"] == found.rows["src_txt"]


def test_what_does_not_fit_loses_examples_first_and_is_counted(tokenizer: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["山" * 5, "山" * 40], "tgt_txt": ["水" * 3, "水"]})
    found = asked(tokenizer, rows, pairs(), examples=3, separator="\n", positions=40)
    short, long = found.rows["src_txt"]
    # 40 positions: start, 8 for the answer, 6 for the question, 12 for each example.
    assert (short.count("\n"), short[-6:]) == (2, "山" * 5 + "，")
    assert long == "山" * (40 - 1 - 8 - 1) + "，"
    assert found.counts == {"examples_dropped": 1 + 3, "prompts_cut": 1}
    for text in (short, long):
        assert len(found.tokenizer.encode_prompt(text)) + 8 <= 40
    with pytest.raises(ValueError, match="leaves none of the source within"):
        asked(tokenizer, rows, pairs(), examples=1, template="山" * 40 + "{src_txt}", positions=40)


def test_examples_need_answers_to_show(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="needs training rows with tgt_txt"):
        asked(tokenizer, pairs(), examples=1)
    with pytest.raises(ValueError, match="plain text has no answers to show"):
        asked(tokenizer, datasets.Dataset.from_dict({"src_txt": ["春"]}), pairs(), examples=1)


# --- answers ---


def test_answers_are_those_of_the_generator_whatever_the_batches(decoder: Decoder, tokenizer: Tokenizer) -> None:
    task = tokenizer.with_prompt_template("{src_txt}，")
    sources = ["春", *PAIRS["src_txt"], "山" * 30, "白日"]
    expected = [found["text"] for found in TextGenerator(decoder, task, GREEDY)(sources)]
    assert len(set(expected)) > 1
    for most in (1, 60, 8192):
        assert [answer.text for answer in write_answers(decoder, task, sources, GREEDY, most)] == expected
    assert list(batches([3, 9, 4, 9], 10, 40)) == [[1, 3], [2, 0]]


def ending(tokenizer: Tokenizer, after: dict[str, str | None]) -> Decoder:
    """A decoder that writes after each character the one that `after` says; None: end-of-text."""
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=24))

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(hidden.unbind(-1)[0].long()[..., None] == torch.arange(tokenizer.vocab_size), 1.0, 0.0)

    table = {
        tokenizer.encode(a)[0]: tokenizer.encode(b)[0] if b else tokenizer.end_of_text_id for a, b in after.items()
    }

    def hidden_states(input_ids: torch.Tensor, lengths: Any = None, cache: Any = None) -> torch.Tensor:
        if cache is not None:
            if not cache.layers:
                kv = torch.zeros(len(cache.lengths), 1, 2, 1, 1)
                cache.prefill(0, 0, kv)
            cache.advance([1] * len(cache.lengths) if lengths is None else lengths)
        return torch.tensor([[float(table.get(i, 0)) for i in row] for row in input_ids.tolist()])[..., None]

    decoder.hidden_states = hidden_states  # type: ignore[method-assign]
    decoder.head.forward = head  # type: ignore[method-assign]
    return decoder


def test_whether_a_text_ended_by_itself(tokenizer: Tokenizer) -> None:
    decoder = ending(tokenizer, {"春": "风", "风": "来", "来": None, "山": "山"})
    config = GenerationConfig(max_new_tokens=3, temperature=0)
    found = write_answers(decoder, tokenizer, ["春", "风", "来", "山"], config)
    assert [(answer.text, answer.stopped) for answer in found] == [
        ("风来", True),  # end-of-text is the third of three tokens
        ("来", True),
        ("", True),
        ("山山山", False),
    ]
    config = GenerationConfig(max_new_tokens=3, temperature=0, stop=["来"])
    assert [(a.text, a.stopped) for a in write_answers(decoder, tokenizer, ["春", "山"], config)] == [
        ("风", True),
        ("山山山", False),
    ]
    # The last position, not max_new_tokens, ends this one; and a prompt that is too long is cut, and says so.
    config = GenerationConfig(max_new_tokens=20, temperature=0)
    (long,) = write_answers(decoder, tokenizer, ["山" * 50], config)
    assert (long.text, long.stopped, long.cut) == ("山" * (24 - 6), False, True)


# --- choices ---


def likelihood(decoder: Decoder, prompt: list[int], choice: list[int]) -> float:
    with torch.no_grad():
        logits = decoder(torch.tensor([prompt + choice]))[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(choice))


def test_the_likeliest_choice_is_taken_as_a_sum_and_per_character(decoder: Decoder, tokenizer: Tokenizer) -> None:
    task = tokenizer.with_prompt_template("{src_txt}，")
    choices = [["黄河入海流", "山", "日"], ["楼", "更上一层楼"], ["处处闻啼鸟", "花落", "知多少", "春"]]
    answers = [1, 0, 3]
    rows = pairs(choices=[json.dumps(c) for c in choices], answer=[str(a) for a in answers])
    expected = []
    for source, texts, answer in zip(PAIRS["src_txt"], choices, answers, strict=True):
        scores = [likelihood(decoder, task.encode_prompt(source), task.encode(text)) for text in texts]
        mean = [value / len(text) for value, text in zip(scores, texts, strict=True)]
        expected.append([np.argmax(scores) == answer, np.argmax(mean) == answer])
    (total, per_character), cut = choice_accuracy(decoder, task, rows, max_batch_tokens=30)
    assert (total.name, per_character.name, cut) == ("choice_accuracy", "choice_accuracy_per_char", 0)
    assert total.of_rows().tolist() == [one for one, _ in expected]
    assert per_character.of_rows().tolist() == [other for _, other in expected]
    assert total.of_rows().tolist() != per_character.of_rows().tolist(), "a test that tells them apart"
    assert chance(rows)[0].value == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    long = datasets.Dataset.from_dict({"src_txt": ["山" * 200], "choices": ['["水", "火"]'], "answer": ["0"]})
    assert choice_accuracy(decoder, task, long)[1] == 1


# --- rows ---


def test_columns_of_a_task_are_read_as_lists_and_numbers(tmp_path: Path) -> None:
    row = {
        "src_txt": "问",
        "tgt_txt": "甲",
        "references": ["甲", "乙"],
        "slots": [],
        "choices": ["甲", "丙"],
        "answer": 0,
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "rows.csv").write_text('src_txt,tgt_txt,references\n问,甲,"[""甲"", ""乙""]"\n')
    wanted = columns_of(TaskConfig(metrics=["bleu", "slots", "choices"]), DataConfig())
    assert wanted == {"references", "slots", "choices", "answer", "group"}
    for cache in (None, tmp_path / "cache"):
        found = load_rows(tmp_path / "rows.jsonl", cache=cache, extras=wanted)
        assert read_choices(found) == [(["甲", "丙"], 0)]
        assert read_task_rows(found)[0].references == ["甲", "乙"]
        assert load_rows(tmp_path / "rows.jsonl", cache=cache).column_names == ["src_txt", "tgt_txt"]
    assert read_task_rows(load_rows(tmp_path / "rows.csv", extras=wanted))[0].references == ["甲", "乙"]
    given = load_rows(datasets.Dataset.from_list([row]), extras=wanted)
    assert read_choices(given) == [(["甲", "丙"], 0)]
    assert columns_of(TaskConfig(metrics=["choices"]), DataConfig(columns={"answer": "tgt_txt"})) == {
        "choices",
        "group",
    }


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"choices": ['["甲"]'], "answer": ["0"]}, "row 1: choices holds 1; give two or more"),
        ({"choices": ["甲, 乙"], "answer": ["0"]}, r"row 1: choices \(甲, 乙\) must be a list of texts"),
        ({"choices": ['["甲", 1]'], "answer": ["0"]}, "row 1: choices"),
        ({"choices": ['["甲", "乙"]'], "answer": ["2"]}, r"row 1: answer \(2\) must be a number from 0 to 1"),
        ({"choices": ['["甲", "乙"]'], "answer": ["A"]}, r"row 1: answer \(A\) must be a number"),
    ],
)
def test_rows_without_proper_choices_are_named(columns: dict[str, list[str]], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_choices(datasets.Dataset.from_dict({"src_txt": ["问"]} | columns))


def test_the_right_choice_stands_in_for_a_target() -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["问"], "choices": ['["甲", "乙"]'], "answer": ["1"]})
    assert with_targets(rows)["tgt_txt"] == ["乙"]


def test_of_plain_text_the_first_clause_is_asked_and_the_rest_expected() -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["白日依山尽，黄河入海流。", "春", "，春"]})
    assert [(row.source, row.references) for row in read_task_rows(rows)] == [
        ("白日依山尽，", ["黄河入海流。"]),
        ("春", [""]),
        ("，春", [""]),
    ]


# --- evaluations ---


def evaluated(decoder: Decoder, tokenizer: Tokenizer, *arguments: str, **columns: Any) -> tuple[Task, Any]:
    config = load_config("evaluate", ["generation.max_new_tokens=8", "generation.temperature=0", *arguments])
    task = Task(config, pairs(**columns), pairs())
    return task, task.of_model(decoder, tokenizer)


def test_a_model_and_what_needs_none_are_scored_alike(decoder: Decoder, tokenizer: Tokenizer) -> None:
    metrics = "[perplexity,rouge,bleu,exact_match,repetition,length]"
    task, found = evaluated(decoder, tokenizer, f"task.metrics={metrics}", "task.trivial=[copy,nearest]", "task.rows=2")
    tuned = tokenizer.with_prompt_template(default_template(pairs(), tokenizer))
    whole = score(decoder, tuned, pairs())
    assert found["perplexity_per_char"].value == pytest.approx(whole.perplexity_per_char.value)
    assert len(found["perplexity_per_char"].statistics) == 3
    assert len(found.rows) == len(found["rouge1"].statistics) == len(found["end_of_text_rate"].statistics) == 2
    texts = TextGenerator(decoder, tuned, task.config.generation)([row.source for row in found.rows])
    assert [row.text for row in found.rows] == [text["text"] for text in texts]
    for row in found.rows:
        assert PAIRS["src_txt"][row.number] == row.source
        assert row.references == [PAIRS["tgt_txt"][row.number]]
        own = whole.perplexity_per_char.of_rows()[row.number]
        assert row.scores["perplexity_per_char"] == pytest.approx(own)
    # The nearest training row of each of these is the row itself.
    nearest = task.of_trivial("nearest")
    assert nearest["exact_match"].value == nearest["rougeL"].value == 1
    assert nearest["bleu"].value == pytest.approx(100)
    assert nearest.rows[0].stopped is None
    assert "end_of_text_rate" not in nearest
    assert task.of_trivial("copy")["length_ratio"].value == 1
    assert set(task.floors(tokenizer)) == {"unigram", "bigram", "trigram"}


def test_few_shot_prompts_are_what_is_scored_and_answered(decoder: Decoder, tokenizer: Tokenizer) -> None:
    arguments = ["task.metrics=[perplexity,rouge]", "task.examples=1", "task.template={src_txt}，"]
    task, found = evaluated(decoder, tokenizer, *arguments)
    prompted = build_prompts(task.test, task.train, tokenizer, task.task, task.config.data, 96, 8, task.config.seed)
    expected = score(decoder, prompted.tokenizer, prompted.rows).perplexity_per_char.value
    assert found["perplexity_per_char"].value == pytest.approx(expected)
    plain = score(decoder, tokenizer.with_prompt_template("{src_txt}，"), pairs()).perplexity_per_char.value
    assert found["perplexity_per_char"].value != pytest.approx(plain)
    assert found.counts == {"examples_dropped": 0, "prompts_cut": 0, "rows_cut": 0}
    stop = ["task.separator=" + found.rows[0].text[2]]
    _, again = evaluated(decoder, tokenizer, *arguments, "task.metrics=[rouge]", *stop)
    assert all(stop[0][-1] not in row.text for row in again.rows)


def test_choices_stand_beside_guessing(decoder: Decoder, tokenizer: Tokenizer) -> None:
    columns = {"choices": ['["甲", "乙"]'] * 3, "answer": ["0", "1", "0"]}
    task, found = evaluated(decoder, tokenizer, "task.metrics=[choices]", **columns)
    assert found.rows == []
    assert found["choice_accuracy"].value in (1 / 3, 2 / 3)
    assert task.floors(tokenizer)["chance"]["choice_accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("labels", "numbers", "expected"),
    [
        (["a", "a", "a", "b", "", "", "c"], range(7), [0, 3, 4]),
        (["a", "a", "a", "b"], range(4), [0, 1, 3]),
        (["a", "a", "a", "b", "c"], [1, 2, 4], [0, 1, 2]),
        (["a"], range(1), [0]),
        (None, range(5), [0, 1, 2]),
    ],
)
def test_samples_are_of_different_groups(labels: list[str] | None, numbers: Sequence[int], expected: list[int]) -> None:
    """Three questions on one passage would show less of a model than one on each of three."""
    groups = {GROUP: labels} if labels else {}
    rows = datasets.Dataset.from_dict({"src_txt": ["春"] * len(labels or numbers), **groups})
    assert first_of_groups(rows, numbers, 3) == expected
