"""Forms of verse against poems that everybody knows, and what people begin that doesn't fit them."""

from __future__ import annotations

from functools import reduce

import pytest

from modules.config.verse.forms import FORMS, patterns_of
from modules.config.verse.han import han_only
from modules.evaluation.verse.form import form_of
from modules.inference.verse.rhymes import TABLE
from modules.inference.verse.verse_form import Place, VerseForm

POEMS = {
    "五绝": "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "七绝": "日照香炉生紫烟，遥看瀑布挂前川。飞流直下三千尺，疑是银河落九天。",
    "五律": "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。",
    "七律": "风急天高猿啸哀，渚清沙白鸟飞回。无边落木萧萧下，不尽长江滚滚来。"
    "万里悲秋常作客，百年多病独登台。艰难苦恨繁霜鬓，潦倒新停浊酒杯。",
    "渔歌子": "西塞山前白鹭飞，桃花流水鳜鱼肥。青箬笠，绿蓑衣。斜风细雨不须归。",
    "忆江南": "江南好，风景旧曾谙。日出江花红胜火，春来江水绿如蓝。能不忆江南？",
    "如梦令": "昨夜雨疏风骤，浓睡不消残后。试问卷帘人，却道海棠依旧。知右，知右，应是绿肥红瘦。",
    "浣溪沙": "一曲新词酒一杯，去年天气旧亭台。夕阳西下几时回。无可奈何花落去，似曾相识燕归来。小园香径独徘徊。",
    "采桑子": "群芳过后西湖好，狼籍残红。飞絮濛濛。垂柳阑干尽日风。"
    "笙歌散尽游人去，始觉春空。垂下帘栊。双燕归来细雨中。",
    "卜算子": "缺月挂疏桐，漏断人初静。谁见幽人独往来，缥缈孤鸿影。"
    "惊起却回头，有恨无人省。拣尽寒枝不肯栖，寂寞沙洲冷。",
    "菩萨蛮": "小山重叠金明灭，鬓云欲度香腮雪。懒起画蛾眉，弄妆梳洗迟。"
    "照花前后镜，花面交相映。新帖绣罗襦，双双金鹧鸪。",
}
"""That of 如梦令 with 后 and 右 for 酒 and 否, which stand in another rhyme of 平水韵 (上 for 去)."""

CHARACTERS = {*TABLE.read_text(encoding="utf-8"), *"，；：？！。"}


def form_named(name: str, tones: bool = True) -> VerseForm:
    return VerseForm(name, tones, CHARACTERS)


def walk(form: VerseForm, text: str, place: Place | None = None) -> Place | None:
    start: Place | None = place or Place(patterns=tuple(range(len(form.patterns))))
    return reduce(lambda at, character: at and form.after(at, character), text, start)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tones", [True, False])
def test_a_known_poem_keeps_its_form_to_the_end(name: str, tones: bool) -> None:
    form = form_named(name, tones)
    assert all(len(pattern) == form.slots for pattern in form.patterns)
    end = walk(form, POEMS[name])
    assert end
    assert end.index == form.slots
    assert not form.allowed(end)
    half = POEMS[name][: len(POEMS[name]) // 2]
    assert walk(form, POEMS[name][len(half) :], form.read(half))
    assert form.read(POEMS[name]).index == form.slots


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("size", "五七")
def test_patterns_of_regulated_verse_keep_every_rule_that_evaluate_knows(size: str, count: int) -> None:
    """For 平 and 仄 stand characters of one reading; where either may stand, both are tried."""
    for free in "平仄":
        for pattern in patterns_of(size + ("绝" if count == 4 else "律"), tones=True):
            text = pattern.replace("韵", "").replace("中", free).replace("平", "天").replace("仄", "月")
            found = form_of(text)
            kept = {name: value for name, value in found.items() if "repeated" not in name}
            assert set(kept.values()) == {1.0}, (pattern, kept)


def test_a_rhyme_is_one_of_the_first_ones_and_never_the_same_character() -> None:
    form = form_named("五绝", tones=False)
    place = walk(form, "白日依山尽，黄河入海流。欲穷千里目，更上一层")
    assert place
    assert {"楼", "秋"} <= form.allowed(place)
    assert not {"流", "山", "月", "，"} & form.allowed(place)
    assert walk(form, "黄河入海月") is not None  # the first line needn't rhyme
    assert walk(form, "白日依山尽，黄河入海月") is None  # nor does verse rhyme in an oblique tone


def test_tones_are_kept_only_where_asked() -> None:
    assert walk(form_named("五绝"), "白日山") is not None
    assert walk(form_named("五绝"), "白日山山") is not None
    assert walk(form_named("五绝"), "白日山日") is None
    assert walk(form_named("五绝", tones=False), "白日山日") is not None


def test_lines_end_in_a_mark_and_nowhere_else() -> None:
    form = form_named("五绝")
    assert walk(form, "白日，") is None
    assert walk(form, "白日依山尽黄") is None
    assert walk(form, "白日依山尽。") is None
    assert walk(form, "白日依山尽？") is not None


def test_a_repeated_line_repeats_its_characters() -> None:
    form = form_named("如梦令")
    place = walk(form, POEMS["如梦令"][: POEMS["如梦令"].index("知右，") + 3])
    assert place
    assert form.allowed(place) == {"知"}


def test_what_a_person_began_may_break_rules_but_not_lines() -> None:
    form = form_named("五绝")
    free = form_named("五绝", tones=False)
    place = free.read("空山不见人，\n但闻人语响。")  # an oblique rhyme
    assert place.rhymes == {"上声二十二养"}
    assert place.index == 12
    last = walk(free, "返景入深林，复照青苔", place)
    assert last
    assert "仰" in free.allowed(last)
    assert not {"响", "流", "月"} & free.allowed(last)
    for text, wrong in (
        ("白日依山尽黄河", "a mark belongs where '黄' stands"),
        ("白日，", "a character belongs where '，' stands"),
        ("，", "a character belongs where '，' stands"),
        (POEMS["五绝"] + "白", "nothing more belongs where '白' stands"),
        (POEMS["七绝"], "a mark belongs where '紫' stands"),
    ):
        with pytest.raises(ValueError, match=f"^form 五绝 .*{wrong}$"):
            form.read(text)


def test_a_vocabulary_that_cannot_rhyme_is_refused() -> None:
    with pytest.raises(ValueError, match="^form 五绝 can't be written: this model's vocabulary lacks"):
        VerseForm("五绝", False, "白日依山尽，黄河入海流。")


def test_every_character_of_a_form_is_han_or_a_mark() -> None:
    for name, poem in POEMS.items():
        assert len(han_only(poem)) == sum(sign not in "，。韵换" for sign in FORMS[name][0])
