"""From a poem as printed to plain simplified text: notes and quotation marks out, one form a character."""

from __future__ import annotations

import re
from typing import NamedTuple

import opencc

from .poem_archive import RawPoem
from .verse import HAN, PUNCTUATION, han_only

SHORTEST, LONGEST = 8, 400  # Han characters of a row kept

# Variants that OpenCC's t2s leaves as they are, each followed by its standard simplified form: those met at
# least ten times in the archive, except where the variant is also a character in its own right (沈, 祇, 遰).
_VARIANT_PAIRS = """
隠隐 疎疏 簷檐 鴈雁 鬰郁 髪发 頼赖 浄净 徧遍 鶑莺 慙惭 粧妆 劒剑 鬭斗 媿愧 蘂蕊 僊仙 臯皋 髙高 猨猿 鼇鳌
馿驴 鬬斗 巵卮 櫂棹 煖暖 賸剩 嬾懒 牋笺 歛敛 餠饼 覩睹 妬妒 罇樽 閙闹 隣邻 寛宽 懽欢 俛俯 茆茅 隄堤 彊强
椀碗 鉏锄 懃勤 慇殷 筯箸 拏拿 袴裤 斾旆 峩峨 鳯凤 甯宁 怱匆 虀齑 檝楫 缾瓶 堦阶 毬球 畧略 髣仿 髴佛 埽扫
迺乃 燄焰 遯遁 踈疏 秪只 穉稚 潄漱 犂犁 鼈鳖 鏁锁 麤粗 怳恍 飜翻 羃幂 廻回 邉边 悮误 羮羹 蜺霓 磵涧 欵款
栢柏 歳岁 秔粳 覊羁 笻筇 醆盏 蔕蒂 揺摇 烱炯 槩概 逈迥 蘗蘖 穽阱 幙幕 竝并 枿蘖 暎映 顇悴 偪逼 歘欻 桮杯
纒缠 薫薰 顦憔 秖只 緜绵 壻婿 輙辄 頳赪 蠧蠹 搆构 讐仇 瘖喑 朶朵 螘蚁 牓榜 毎每 斵斲 諠喧 憇憩 碁棋 呌叫
翺翱 譍应 睠眷 瑯琅 筦管 鵶鸦 餽馈 盌碗 皷鼓 閴阒 瓌瑰 臙胭 藂丛 荅答 邨村 懐怀 蕚萼 囘回 躭耽 倐倏 渇渴
氊毡 廐厩 粃秕 濶阔 瑠琉 鸎莺 羇羁 澣浣 徴征 逺远 繖伞 漥洼 戯戏 塲场 艶艳 濬浚 様样 棃梨 鎗枪 闗关 効效
駮驳 寜宁 瞇眯 啣衔 觧解 廼乃 槖橐 燿耀 箒帚 巌岩 穏稳 呪咒 澁涩 琖盏 勲勋 毘毗 碪砧 醤酱 筭算 窻窗 搥捶
脇胁 斚斝 椶棕 衞卫 朞期 嚢囊 逰游 鞵鞋 鐡铁 闚窥 汚污 狥徇 帬裙 鸜鸲 輭软 飡餐 趂趁 倣仿 籖签 釡釜 牕窗
寃冤 淛浙 柟楠 黙默 虵蛇 歴历 凖准 勗勖 甆瓷 甖罂 麞獐 勅敕 徬彷 嘷嗥 飇飙 耡锄 賖赊 甦苏 糢模 彜彝 徃往
轝舆 襃褒 犇奔 髩鬓 覔觅 痩瘦 専专 傚效 氷冰 喣煦 袵衽 箝钳 貎貌 帯带 囓啮 覇霸 鎻锁 覧览 刼劫 衘衔 蠭蜂
曵曳 濵滨 眀明 纎纤 掲揭 蜨蝶 欝郁 昻昂 膓肠 鷰燕 韈袜 聨联 嵓岩 剉锉 捜搜 劔剑 顋腮 颕颖 嵒岩 眎视 僣僭
撃击 畆亩 蝱虻 騣鬃 馽絷 絏绁 麹曲 頬颊 臈腊 塼砖 涙泪 菓果 蠒茧 戸户 鄽廛 籐藤 尅克 冩写 攅攒 蹏蹄 飬养
荳豆 扄扃 韲齑 舩船 胷胸 窓窗 崕崖 壊坏 凴凭 荘庄 煑煮 澘潸 恡吝 甎砖 湼涅 簮簪 嗸嗷 敭扬 臝裸 旍旌 巓巅
蜋螂 麄粗 鵞鹅 爼俎 壍堑 囏艰 鼃蛙 郷乡 頺颓 聴听 砲炮 歗啸 鑛矿 壌壤 擥揽 覰觑 罋瓮 鍳鉴 糓谷 聼听 觝抵
禩祀 騐验 縦纵 蕋蕊 冨富 繋系 鬂鬓 隟隙 樷丛 尫尪 醻酬 阯址 蠏蟹 齅嗅 黒黑 頋顾 羗羌 尠鲜 埜野 熈熙 抝拗
娯娱 虗虚 臕膘 欎郁 昬昏 譌讹 謌歌 詶酬 滛淫 酧酬 鼔鼓 頥颐 陿狭 豊丰 従从 寕宁 韤袜 賛赞 衂衄 莭节 脗吻
畮亩
"""

VARIANTS = str.maketrans({pair[0]: pair[1] for pair in _VARIANT_PAIRS.split()})

_NOTE = re.compile(r"（[^（）]*）|\([^()]*\)|〔[^〔〕]*〕|【[^【】]*】")
_QUOTATION_MARK = re.compile(r"[“”‘’「」『』《》〈〉〖〗\"']")
_BLANK = re.compile(r"[^\S\n]+")
_UNFINISHED_PARAGRAPH = re.compile(f"(?<=[{HAN}])\n")
_REPEATED_PUNCTUATION = re.compile(f"([{PUNCTUATION}])[{PUNCTUATION}]+")
_FULL_WIDTH = str.maketrans(",?!;:", "，？！；：")
_ALLOWED = re.compile(f"[{HAN}{PUNCTUATION}]+")


class Poem(NamedTuple):
    """A poem in simplified characters, ready to be a row."""

    text: str
    title: str
    author: str
    source: str


def clean_text(text: str) -> str:
    """A poem (paragraphs joined by line feeds) without notes, quotation marks and blanks, on one line.

    A paragraph that ends in a Han character, so without punctuation of its own, is closed with 。
    """
    text = _strip_notes(text)
    text = _BLANK.sub("", _QUOTATION_MARK.sub("", text)).translate(_FULL_WIDTH)
    text = _UNFINISHED_PARAGRAPH.sub("。", text.strip("\n") + "\n").replace("\n", "")
    return _REPEATED_PUNCTUATION.sub(r"\1", text).lstrip(PUNCTUATION)


def reason_to_drop(text: str) -> str | None:
    """Why a cleaned text is no row ("foreign characters", "too short", "too long"), None if it is one."""
    if not _ALLOWED.fullmatch(text):
        return "foreign characters" if text else "too short"
    length = len(han_only(text))
    if length < SHORTEST:
        return "too short"
    return "too long" if length > LONGEST else None


class Simplifier:
    """Traditional to simplified: OpenCC's t2s, then VARIANTS."""

    def __init__(self) -> None:
        self._converter = opencc.OpenCC("t2s")

    def __call__(self, text: str) -> str:
        return str(self._converter.convert(text)).translate(VARIANTS)


def clean_poems(poems: list[RawPoem], source: str, simplify: Simplifier) -> tuple[list[Poem], list[str]]:
    """The rows that `poems` of one file give, and for each poem dropped the reason."""
    kept: list[tuple[str, str, str]] = []
    dropped: list[str] = []
    for poem in poems:
        text = clean_text(poem.text)
        reason = reason_to_drop(text)
        if reason:
            dropped.append(reason)
        else:
            kept.append((text, _label(poem.title), _label(_strip_notes(poem.author))))
    # One call a file: OpenCC's cost is mostly that of the call.
    fields = simplify("\n".join(field for row in kept for field in row)).split("\n") if kept else []
    rows = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    return [Poem(text, title, author, source) for text, title, author in rows], dropped


def _strip_notes(text: str) -> str:
    """Twice, for a note within a note."""
    return _NOTE.sub("", _NOTE.sub("", text))


def _label(text: str) -> str:
    return " ".join(text.split())
