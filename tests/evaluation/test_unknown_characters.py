"""Characters that a tokenizer loses are charged for wherever a model is scored by characters."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest

from modules.config.data import DataConfig
from modules.config.evaluation import TaskConfig
from modules.config.training import TrainConfig
from modules.data.datamodule import TextDataModule
from modules.evaluation.baselines import NgramModel, ngram_floors
from modules.evaluation.likelihood import choice_accuracy, score
from modules.evaluation.promotion import decide
from modules.evaluation.prompts import build_prompts, require_lines
from modules.evaluation.statistics import Metric, compare, perplexity
from modules.model.loss import stopping_cross_entropy
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.training.lightning_module import LanguageModel
from tests.helpers.models import make_config, make_decoder

KNOWN = "春夏秋冬风花雪月"


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "，", "。", *KNOWN]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return load_tokenizer(tmp_path)


def plain(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"src_txt": list(texts)})


def test_each_lost_character_costs_its_bytes(bert: Tokenizer) -> None:
    decoder = make_decoder(make_config(bert.vocab_size))
    rows = plain("春鱻夏", "春夏", "\n春é")
    found = score(decoder, bert, rows)
    assert found.lost_bytes.tolist() == [3, 0, 3]
    assert (found.lost.count, found.lost.characters) == (3, 8)
    expected = math.exp((found.nll.sum() + 6 * math.log(256)) / (8 + 3))
    assert found.perplexity_per_char.value == pytest.approx(expected)
    assert found.perplexity.value == pytest.approx(math.exp(found.nll.sum() / found.tokens.sum()))
    assert found.perplexity_per_char.unread is not None
    assert found.perplexity_per_char.unread.tolist() == [True, False, True]
    assert score(decoder, bert, plain("春夏")).perplexity_per_char.unread is None


def test_a_row_that_is_cut_is_charged_for_what_is_kept(bert: Tokenizer) -> None:
    decoder = make_decoder(make_config(bert.vocab_size, max_position_embeddings=8))
    rows = datasets.Dataset.from_dict({"src_txt": ["春"], "tgt_txt": ["鱻" * 40]})
    found = score(decoder, bert, rows)
    assert found.rows_cut == 1
    assert 0 < found.lost_bytes[0] <= 3 * 8
    assert found.perplexity_per_char.value > 255**3 or math.isnan(found.perplexity_per_char.value)


def test_validation_charges_as_evaluation_does(bert: Tokenizer) -> None:
    rows = plain("春鱻夏", "春夏", "龘龘。")
    decoder = make_decoder(make_config(bert.vocab_size))
    data = TextDataModule({"train": rows, "validation": rows}, bert, DataConfig(sequence_length=32), batch_size=2)
    module = LanguageModel(decoder, TrainConfig(), learning_rate=1e-3, total_steps=1)
    for step in data.val_dataloader():
        for batch in step.micro_batches:
            head = partial(
                stopping_cross_entropy, labels=batch.labels, trained=batch.trained, end_of_text_id=bert.end_of_text_id
            )
            module.totals[0].add(batch, decoder(batch.input_ids, batch.layout, head=head))
    expected = score(decoder, bert, rows).perplexity_per_char.value
    assert module.totals[0].metrics()["val/perplexity_per_char"] == pytest.approx(expected, rel=1e-4)


def test_a_choice_that_the_tokenizer_loses_is_not_the_likeliest(bert: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict(
        {"src_txt": ["春"] * 2, "choices": ['["\\n\\n\\n\\n", "夏秋"]', '["夏", "鱻龘鱻龘"]'], "answer": ["1", "0"]}
    )
    accuracy, _ = choice_accuracy(make_decoder(make_config(bert.vocab_size), spread=1.0), bert, rows)
    assert accuracy[0].value == 1


def test_the_floor_is_charged_for_characters_that_it_never_saw() -> None:
    train, test = ["春夏秋", "春秋夏"], ["春鱻夏", "春夏"]
    plain_losses = NgramModel(2).fit(train).row_losses(test).sum()
    expected = math.exp((plain_losses + 3 * math.log(256)) / 7)
    assert ngram_floors(train, test)["bigram"].value == pytest.approx(expected)
    unseen_in_prompt = ngram_floors(train, ["鱻夏"], starts=[1])["unigram"].value
    assert unseen_in_prompt == pytest.approx(math.exp(NgramModel(1).fit(train).row_losses(["鱻夏"], [1])[0] / 2))


# --- promotion ---


def measure(per_character: float, unread: np.ndarray | None = None, rows: int = 200) -> Metric:
    characters = np.random.default_rng(0).integers(5, 60, rows)
    noise = np.random.default_rng(int(100 * per_character)).normal(0, 0.05, rows)
    found = perplexity("perplexity_per_char", characters * (per_character + noise), characters)
    return Metric(found.name, found.statistics, found.value_of, False, unread=unread)


def test_a_model_that_reads_no_row_whole_is_never_ahead() -> None:
    blind = np.ones(200, bool)
    won = decide(measure(2.0, blind), measure(5.0), "1")
    assert (won.promoted, won.verdict) == (False, "undecided")
    assert "200 of these rows hold characters that the tokenizer of the one ahead loses" in won.reason
    assert decide(measure(2.0), measure(5.0), "1").promoted
    assert decide(measure(2.0), measure(5.0, blind), "1").promoted
    assert compare(measure(5.0), measure(2.0, blind)).verdict == "undecided"


def test_a_model_must_also_be_ahead_on_the_rows_that_it_reads_whole() -> None:
    some = np.arange(200) < 20
    assert decide(measure(2.0, some), measure(5.0), "1").promoted
    better_there = measure(2.0, some)
    worse_elsewhere = measure(5.1)
    statistics = np.where(some[:, None], 0.0 * better_there.statistics, worse_elsewhere.statistics)
    statistics[:, 1] = better_there.statistics[:, 1]
    mixed = Metric(better_there.name, statistics, better_there.value_of, False, unread=some)
    assert compare(Metric(mixed.name, statistics, mixed.value_of, False), measure(5.0)).verdict == "better"
    assert compare(mixed, measure(5.0)).verdict == "undecided"


# --- where it breaks the task ---


def test_few_shot_examples_need_a_separator_that_stays(bert: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["春", "夏"], "tgt_txt": ["秋", "冬"]})
    how = rows, rows, bert, TaskConfig(examples=1), DataConfig(), 64, 8, 1
    with pytest.raises(ValueError, match=r"task\.separator='\\n\\n': this model's tokenizer loses it"):
        build_prompts(*how)
    task = TaskConfig(examples=1, separator="。")
    assert build_prompts(rows, rows, bert, task, DataConfig(), 64, 8, 1).counts["prompts_cut"] == 0


def test_verse_in_lines_needs_line_ends(bert: Tokenizer, tokenizer: Tokenizer) -> None:
    require_lines(plain("春\n夏"), ["verse"], tokenizer)
    require_lines(plain("春。夏。"), ["verse"], bert)
    require_lines(plain("春\n夏"), ["perplexity"], bert)
    with pytest.raises(ValueError, match="the metric verse: these rows have line ends"):
        require_lines(plain("春\n夏"), ["verse"], bert)
