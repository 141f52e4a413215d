"""Rhymes and tones of regulated poems that everybody knows, and of poems that are known for a rule they break."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.config.verse.han import han_only
from modules.evaluation.verse.form import couplet_form, form_of, lines_of
from modules.inference.verse.rhymes import rhymes_of, tones_of
from modules.inference.verse.verse_form import VerseForm

RULES = "rhyme", "tones alternate", "tones oppose in couplets", "tones agree between couplets"

FILE = Path(__file__).parents[2] / "files" / "regulated_poems.tsv"
POEMS = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()]
"""Title, rhyme and text of each."""


def broken_rules(poem: str) -> set[str]:
    form = form_of(poem)
    return {name for name in RULES if form[name] < 1}


@pytest.mark.parametrize(("title", "rhyme", "poem"), POEMS, ids=[poem[0] for poem in POEMS])
def test_a_regulated_poem_keeps_every_rule(title: str, rhyme: str, poem: str) -> None:
    assert broken_rules(poem) == set()
    assert all(rhyme in rhymes_of(line[-1]) for line in lines_of(poem)[1::2])
    assert all(rhymes_of(character) for character in han_only(poem))


@pytest.mark.parametrize(
    ("poem", "broken"),
    [
        # 李白, 静夜思: 是 stands over 上, 头 over 明, and 头 under 头.
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。", set(RULES[1:])),
        # 韦应物, 滁州西涧, and 王维, 送元二使安西, 使至塞上: 失粘.
        ("独怜幽草涧边生，上有黄鹂深树鸣。春潮带雨晚来急，野渡无人舟自横。", {"tones agree between couplets"}),
        ("渭城朝雨浥轻尘，客舍青青柳色新。劝君更尽一杯酒，西出阳关无故人。", {"tones agree between couplets"}),
        (
            "单车欲问边，属国过居延。征蓬出汉塞，归雁入胡天。大漠孤烟直，长河落日圆。萧关逢候骑，都护在燕然。",
            {"tones agree between couplets"},
        ),
        # 崔颢, 黄鹤楼: its first half is old-style.
        ("昔人已乘黄鹤去，此地空余黄鹤楼。黄鹤一去不复返，白云千载空悠悠。", {"tones alternate"}),
        # 孟浩然, 过故人庄: its first line exchanges tones (特拗) after an oblique one.
        ("故人具鸡黍，邀我至田家。绿树村边合，青山郭外斜。", {"tones alternate"}),
        # 登鹳雀楼 with one character changed each time.
        ("白日依水尽，黄河入海流。欲穷千里目，更上一层楼。", {"tones alternate"}),  # nothing repairs 水
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层天。", {"rhyme"}),
        ("白日依山尽，黄草入海流。欲穷千里目，更上一层楼。", set(RULES[1:])),
        ("白日依山尽，黄河入云流。欲穷千里目，更上一层楼。", {"tones alternate"}),
        # 特拗 where it isn't allowed: in a couplet's second line.
        ("白日依山尽，移舟泊烟渚。欲穷千里目，更上一层楼。", {"tones alternate", "rhyme"}),
    ],
)
def test_what_breaks_a_rule_is_still_seen(poem: str, broken: set[str]) -> None:
    assert broken_rules(poem) == broken


def test_the_second_line_repairs_the_first_by_its_third_character_alone() -> None:
    assert form_of("野火烧百草，春风吹又生。")["tones alternate"] == 1
    assert form_of("野火烧百草，春风送又生。")["tones alternate"] == 0.5
    assert form_of("春风吹又生，野火烧百草。")["tones alternate"] == 0.5


def test_couplets_may_exchange_and_repair_tones_too() -> None:
    for first, second in (
        ("遥怜小儿女", "未解忆长安"),
        ("惶恐滩头说惶恐", "零丁洋里叹零丁"),
        ("野火烧百草", "春风吹又生"),
    ):
        assert couplet_form(first, second)["tones oppose"] == 1
    assert couplet_form("零丁洋里叹零丁", "惶恐滩头说惶恐")["tones oppose"] == pytest.approx(2 / 3)
    assert couplet_form("野火烧百草", "春风送又生")["tones oppose"] == 0.5


@pytest.mark.parametrize(
    "characters",
    [
        "迹跡",
        "沉",
        "啼嗁",
        "遍徧",
        "樽",
        "惭慚慙",
        "炉爐",
        "睹覩",
        "馀餘",
        "锺鍾",
        "着",
        "做",
        "蝴",
        "嫦",
        "葱蔥",
        "碗",
    ],
)
def test_variants_of_a_character_are_in_the_table(characters: str) -> None:
    assert all(rhymes_of(character) and rhymes_of(character) == rhymes_of(characters[0]) for character in characters)


def test_characters_with_two_readings_have_both_tones() -> None:
    """They say nothing of tone where either may be read; one that the table lacks makes right verse wrong."""
    two = "先看听教思过望论胜禁应凭叹忘重观中治旋离为吹传间冠难空种长行相将当更横槎伎喻"
    assert [character for character in two if tones_of(character) != {"平", "仄"}] == []


def test_tones_may_be_exchanged_in_what_is_written_too() -> None:
    form = VerseForm("五绝", True, {*"".join(poem for _, _, poem in POEMS)})
    place = form.read("移舟泊")
    assert "烟" in form.allowed(place)
    assert not {"烟", "天"} & form.allowed(form.read("移舟天"))
