"""The form of verse, by poems whose form is known, and by real verse against the same characters shuffled."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure_form import shuffled
from modules.data.corpora.verse import cut_couplets, cut_quatrains, split_of
from modules.evaluation.statistics import mean
from modules.evaluation.verse.copying import TrainingText
from modules.evaluation.verse.form import couplet_form, form_of, line_lengths, repeated_share
from modules.inference.verse.rhymes import rhyme, rhymes_of, tone_of
from modules.system.jsonl import read_jsonl
from tests.helpers.models import ROOT

STORKS = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
"""王之涣, 登鹳雀楼: keeps every rule."""
SPRING = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。"
"""杜甫, 春望: regulated verse of eight lines."""
NIGHT = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
"""李白, 静夜思: an old-style quatrain, rhymed, against the tones."""
FAREWELL = "渭城朝雨浥轻尘，客舍青青柳色新。劝君更尽一杯酒，西出阳关无故人。"
"""王维, 送元二使安西: known for the adhesion it breaks between its second line and its third."""
POEMS = ROOT / "data" / "poems.jsonl.gz"

TONES = "tones alternate", "tones oppose in couplets", "tones agree between couplets"


@pytest.mark.parametrize("poem", [STORKS, SPRING])
def test_regulated_verse_keeps_every_rule(poem: str) -> None:
    form = form_of(poem)
    assert [form[name] for name in ("lines of one length", "quatrain or regulated", "rhyme", *TONES)] == [1.0] * 6
    assert form["repeated lines"] == form["repeated pairs"] == 0


def test_an_old_style_quatrain_rhymes_against_the_tones() -> None:
    form = form_of(NIGHT)
    assert (form["quatrain or regulated"], form["rhyme"]) == (1, 1)
    assert form["tones alternate"] == 0.5  # 是 and 上 are oblique, 头 and 明 level
    assert form["tones oppose in couplets"] == 0.5  # 头 stands under 头
    assert form["repeated characters"] == pytest.approx(3 / 20)  # 明, 月, 头
    assert form["repeated pairs"] == pytest.approx(1 / 19)  # 明月


def test_a_break_between_the_couplets_is_seen() -> None:
    form = form_of(FAREWELL)
    assert (form["rhyme"], form["tones alternate"], form["tones oppose in couplets"]) == (1, 1, 1)
    assert form["tones agree between couplets"] == 0  # 舍 is oblique, 君 level


def test_lines_of_another_length_are_counted() -> None:
    form = form_of("白日依山尽，黄河流。欲穷千里目，更上一层楼。")
    assert (form["lines of one length"], form["quatrain or regulated"]) == (0.75, 0)
    assert line_lengths("大江东去，浪淘尽，千古风流人物。") == [4, 3, 6]


@pytest.mark.parametrize("text", ["", "。，", "abc", "春", "春眠"])
def test_where_a_rule_has_nothing_to_say_is_nan(text: str) -> None:
    form = form_of(text)
    assert all(math.isnan(form[name]) for name in ("rhyme", *TONES))
    assert form["quatrain or regulated"] == 0


@given(st.text("白日依山尽黄河入流，。a\n", max_size=60), st.text("白日依山，", max_size=10))
def test_every_text_has_a_form(text: str, other: str) -> None:
    for value in (*form_of(text).values(), *couplet_form(text, other).values()):
        assert math.isnan(value) or 0 <= value <= 1


def test_couplets() -> None:
    assert couplet_form("感时花溅泪", "恨别鸟惊心") == {
        "same length": 1,
        "tones oppose": 1,
        "last tones": 1,
        "characters of the first line again": 0,
    }
    worse = couplet_form("恨别鸟惊心", "感时花时泪，")
    assert (worse["same length"], worse["last tones"]) == (1, 0)
    assert couplet_form("白日依山尽", "白日依山尽")["tones oppose"] == 0
    assert couplet_form("白日依山尽", "黄河")["same length"] == 0


def test_repetition_is_of_all_stretches() -> None:
    assert repeated_share("一一，一二", 1) == 0.5
    assert repeated_share("一一，一二", 2) == pytest.approx(1 / 3)


def test_rhymes_and_tones_are_those_of_the_table() -> None:
    assert rhymes_of("楼") == {"下平声十一尤"}
    assert (rhyme("流", "楼"), rhyme("流", "山"), rhyme("流", "〇")) == (True, False, None)
    assert [tone_of(character) for character in "山白中〇"] == ["平", "仄", None, None]
    # Entering tones, which today's pronunciation has lost: 白 and 一 would be level by it.
    assert all(tone_of(character) == "仄" for character in "白一国石竹")


def test_verse_by_people_keeps_the_form_that_the_same_characters_shuffled_lose() -> None:
    poems = [row["src_txt"] for row in read_jsonl(POEMS) if split_of(row["src_txt"]) == "test"]
    quatrains = [quatrain for poem in poems for quatrain in cut_quatrains(poem)]
    letters = random.Random(0)
    human = [form_of(text) for text in quatrains]
    floor = [form_of(shuffled(text, letters)) for text in quatrains]
    for name, least, most in (("rhyme", 0.8, 0.1), *((name, 0.7, 0.56) for name in TONES)):
        scores = [mean(name, [form[name] for form in forms]) for forms in (human, floor)]
        assert scores[0].interval()[0] > scores[1].interval()[1]
        assert scores[0].value > least
        assert scores[1].value < most
    couplets = [couplet for poem in poems for couplet in cut_couplets(poem)]
    assert mean("", [couplet_form(*couplet)["tones oppose"] for couplet in couplets]).value > 0.9


# --- copied runs ---


@pytest.fixture(scope="module")
def training() -> TrainingText:
    return TrainingText([STORKS, SPRING])


def test_copied_runs_are_those_in_one_training_row(training: TrainingText) -> None:
    assert training.copied("黄河入海流，欲穷千里") == 1  # nine in a row, whatever the punctuation
    assert training.longest("黄河入海流，欲穷千里") == 9
    assert training.longest("我，黄河入海流，欲穷。") == 7
    assert training.copied("我，黄河入海流，欲穷。") == pytest.approx(7 / 8)
    assert training.copied("黄河入海流欲，黄河入海流欲") == 0  # six at a time
    assert training.longest("更上一层楼。国破山河在") == 0  # across two rows


@pytest.mark.parametrize("text", ["", "。", "白日"])
def test_short_texts_copy_nothing(text: str, training: TrainingText) -> None:
    assert (training.copied(text), training.longest(text)) == (0, 0)


@given(st.lists(st.text("山水人", max_size=12), max_size=4), st.text("山水人", max_size=14))
def test_the_longest_run_is_the_longest_common_substring(rows: list[str], text: str) -> None:
    training = TrainingText(rows, shortest=3)
    substrings = {text[i:j] for i in range(len(text)) for j in range(i + 3, len(text) + 1)}
    copied = [part for part in substrings if any(part in row for row in rows)]
    assert training.longest(text) == max(map(len, copied), default=0)
    begun = [(i, len(part)) for part in copied for i in range(len(text)) if text.startswith(part, i)]
    covered = {place for start, length in begun for place in range(start, start + length)}
    assert training.copied(text) == (len(covered) / len(text) if text else 0)
