"""The models that come with moyun are whole, and as good as README says of them."""

from __future__ import annotations

import datasets
import pytest

from modules.checkpoint.loading import load_verified, verify_model
from modules.config.base import CHINESE, POEMS, model_folder
from modules.config.loader import load_config
from modules.data.corpora.verse import split_of
from modules.evaluation.baselines import ngram_floor
from modules.evaluation.likelihood import score
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import load_tokenizer
from pipelines.generate import generate
from tests.helpers.models import ROOT

FOLDER = model_folder(ROOT / POEMS)


@pytest.mark.parametrize("model", [POEMS, CHINESE])
def test_it_is_sound(model: str) -> None:
    assert verify_model(ROOT / model) < 1e-4


@pytest.mark.parametrize(
    "task", ["translate", "couplets", "summarization", "data_to_text", "question_generation", "instructions"]
)
def test_a_task_without_a_model_goes_to_one_that_has_learnt_it(task: str) -> None:
    config = load_config("generate", [f"task={task}", "prompt=春"])
    assert config.chosen_model == CHINESE
    asked = load_config("evaluate", [f"data={config.task.data}"]).data.prompt_template
    assert load_tokenizer(ROOT / CHINESE).template_for([task]) == asked


def test_text_without_a_task_goes_to_the_one_that_knows_verse_best() -> None:
    assert load_config("generate", ["prompt=春"]).chosen_model == POEMS
    assert load_config("generate", ["prompt=春", "task=poetry"]).chosen_model == POEMS


def test_a_classical_sentence_is_said_in_modern_words() -> None:
    told = generate(load_config("generate", ["task=translate", "prompt=沛公旦日从百余骑来见项王，至鸿门。"]))
    assert "骑兵来见项王" in told


def test_it_reads_unseen_poems_far_better_than_counting_does() -> None:
    poems: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(ROOT / "data" / "poems.jsonl.gz"):
        poems[split_of(row["src_txt"])].append(row["src_txt"])
    assert len(poems["test"]) == 300
    train, test = (datasets.Dataset.from_dict({"src_txt": poems[split]}) for split in ("train", "test"))
    decoder, tokenizer = load_verified(FOLDER)
    found = score(decoder, tokenizer, test).perplexity_per_char.value
    floor = ngram_floor(train, test, tokenizer)
    assert found < 120  # 84.5 when it was made
    assert found < min(of.value for of in floor.values())
