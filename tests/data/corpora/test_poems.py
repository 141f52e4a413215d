from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.data.corpora.dedup import leak_rate
from modules.data.corpora.poem_archive import ARCHIVE_NAME, find_or_fetch_archive
from modules.data.corpora.poem_cleaning import clean_text, reason_to_drop
from modules.data.corpora.poems import build_corpus, write_derived_sets
from modules.data.corpora.verse import SPLITS, cut_couplets, cut_quatrains, split_of
from modules.system.jsonl import read_jsonl
from tests.helpers.models import ROOT
from tools.poem_samples import SAMPLES, write_sample

QUATRAIN = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
REGULATED = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。"


def poem(text: str, title: str = "題", **fields: Any) -> dict[str, Any]:
    return {"title": title, "author": "作者", "paragraphs": [text], **fields}


FILES: dict[str, Any] = {
    "quantangshi/poet.tang.0.json": [
        poem("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。", "登鸛雀樓", id="sound"),
        poem("此是有誤之詩篇，不當留在此中。", id="faulty"),
        poem("慙見疎簷劒，飜聞隠鴈猨。", "變體"),
        poem("短詩只七字也。"),
        poem("長" * 401 + "。"),
        poem("天" * 400 + "。", "恰好"),
        poem("缺字□之詩一首，不可留在此中。"),
    ],
    "quantangshi/error/poet.tang.0.json": [{"id": "faulty"}],
    "quantangshi/poet.song.0.json": [
        poem("春眠不覺曉（一作：曙），處處聞啼鳥。“夜來風雨聲”，花落知多少。", "春曉"),
    ],
    "yudingquantangshi/json/001.json": [
        poem("白日依山盡。黃河入海流！欲窮千里目，更上一層樓。", "exact copy"),
        poem("春眠不覺曉，處處聞啼鳥。夜半風雨至，花落有幾多。", "near copy"),
        poem("國破山河在，城春草木深。感時花濺淚，恨別鳥驚心。烽火連三月，家書抵萬金。白頭搔更短，渾欲不勝簪。"),
        poem("秦時明月漢時關，萬里長征人未還。但使龍城飛將在，烽火連三月。", "one clause in common"),
    ],
    "songci/ci.song.0.json": [
        {"rhythmic": "如梦令", "author": "李清照", "paragraphs": ["常记溪亭日暮", "沉醉不知归路"]}
    ],
    "shijing/shijing.json": [{"title": "关雎", "content": ["关关雎鸠，在河之洲。", "窈窕淑女，君子好逑。"]}],
    "mengxue/qianjiashi.json": {
        "title": "千家詩",
        "content": [
            {
                "type": "五言絕句",
                "content": [
                    {
                        "chapter": "獨坐",
                        "author": "（唐）李白",
                        "paragraphs": ["衆鳥高飛盡，孤雲獨去閑。"],
                    }
                ],
            }
        ],
    },
    "yuanqu/yuanqu.json": [poem("元曲不在收錄之列，不當留在此中。")],
    "nalanxingde/纳兰性德诗集.json": [{"title": "词", "para": ["山一程水一程，身向榆关那畔行"]}],
    "mengxue/sanzijing-new.json": {"title": "三字經", "paragraphs": ["人之初，性本善，性相近，習相遠。"]},
}


def write_archive(path: Path, files: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content, ensure_ascii=False).encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "small.tgz", FILES)


@pytest.fixture(scope="module")
def corpus(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpus")
    build_corpus(archive, output)
    return output


def all_rows(corpus: Path, name: str = "poems") -> list[dict[str, str]]:
    return [row for split in SPLITS for row in read_jsonl(corpus / f"{name}/{split}.jsonl.gz")]


def test_the_recipe_keeps_exactly_these_poems(corpus: Path) -> None:
    rows = {row["src_txt"]: (row["title"], row["author"], row["source"]) for row in all_rows(corpus)}
    assert rows == {
        QUATRAIN: ("登鹳雀楼", "作者", "quantangshi/tang"),
        "惭见疏檐剑，翻闻隐雁猿。": ("变体", "作者", "quantangshi/tang"),
        "天" * 400 + "。": ("恰好", "作者", "quantangshi/tang"),
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。": ("春晓", "作者", "quantangshi/song"),
        REGULATED: ("题", "作者", "yudingquantangshi"),
        "秦时明月汉时关，万里长征人未还。但使龙城飞将在，烽火连三月。": (
            "one clause in common",
            "作者",
            "yudingquantangshi",
        ),
        "常记溪亭日暮。沉醉不知归路。": ("如梦令", "李清照", "songci"),
        "关关雎鸠，在河之洲。窈窕淑女，君子好逑。": ("关雎", "", "shijing"),
        "众鸟高飞尽，孤云独去闲。": ("独坐", "李白", "mengxue/qianjiashi"),
    }


def test_manifest_counts_every_step(corpus: Path) -> None:
    stages = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert stages["clean"]["counts"] == {
        "read": 15,
        "listed as faulty": 1,
        "too short": 1,
        "too long": 1,
        "foreign characters": 1,
        "cleaned": 11,
        "exact copies": 1,
    }
    counts = stages["poems"]["counts"]
    assert (counts["near copies"], counts["largest cluster"], counts["poems"]) == (1, 2, 9)
    assert stages["derived"]["files"].keys() == {f"{n}/{s}.jsonl.gz" for n in ("quatrains", "couplets") for s in SPLITS}


def test_derived_rows(corpus: Path) -> None:
    quatrains, couplets = all_rows(corpus, "quatrains"), all_rows(corpus, "couplets")
    assert QUATRAIN in [row["src_txt"] for row in quatrains]
    assert ("烽火连三月", "家书抵万金") in [(row["src_txt"], row["tgt_txt"]) for row in couplets]
    poem = {row["src_txt"][:4]: row["group"] for row in quatrains}
    assert poem["国破山河"] == poem["烽火连三"] == couplets[0]["group"] != poem["白日依山"]  # what is cut from one poem
    assert len(all_rows(corpus, "quatrains")) == 4
    assert len(all_rows(corpus, "couplets")) == 2


def test_same_archive_gives_same_bytes(corpus: Path, archive: Path, tmp_path: Path) -> None:
    build_corpus(archive, tmp_path)
    written = sorted(path.relative_to(corpus) for path in corpus.rglob("*.gz"))
    assert len(written) == 9
    for path in written:
        assert (tmp_path / path).read_bytes() == (corpus / path).read_bytes()


def test_resume_redoes_only_what_does_not_verify(corpus: Path, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    shutil.copytree(corpus, output)
    steps: list[str] = []
    build_corpus(archive, output, lambda step, fraction: steps.append(step))
    assert set(steps) == {"cut verse"}

    good = (output / "quatrains/train.jsonl.gz").read_bytes()
    (output / "quatrains/train.jsonl.gz").write_bytes(good[:-1])
    steps.clear()
    build_corpus(archive, output, lambda step, fraction: steps.append(step))
    assert "read archive" not in steps
    assert (output / "quatrains/train.jsonl.gz").read_bytes() == good

    (output / "poems/train.jsonl.gz").unlink()
    steps.clear()
    build_corpus(archive, output, lambda step, fraction: steps.append(step))
    assert {"read archive", "clean", "deduplicate", "write poems", "cut verse"} == set(steps)
    assert all_rows(output) == all_rows(corpus)


def test_another_archive_is_not_taken_for_the_one_built(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    shutil.copytree(corpus, output)
    other = write_archive(tmp_path / "other.tgz", {"shijing/shijing.json": FILES["shijing/shijing.json"]})
    build_corpus(other, output)
    assert [row["title"] for row in all_rows(output)] == ["关雎"]


def test_published_name_needs_the_published_digest(archive: Path, tmp_path: Path) -> None:
    damaged = shutil.copy(archive, tmp_path / ARCHIVE_NAME)
    with pytest.raises(ValueError, match=r"SHA-512.*Delete it"):
        build_corpus(damaged, tmp_path / "out")
    with pytest.raises(ValueError, match="SHA-512"):
        find_or_fetch_archive(None, tmp_path)


def test_unreadable_archives_are_explained(archive: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ValueError, match="readable"):
        build_corpus(cut, tmp_path / "out")
    with pytest.raises(ValueError, match="no poems"):
        build_corpus(write_archive(tmp_path / "none.tgz", {"lunyu/lunyu.json": []}), tmp_path / "out")


def test_fetching_without_npm_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="install Node"):
        find_or_fetch_archive(None, tmp_path)
    with pytest.raises(ValueError, match="no poem archive"):
        find_or_fetch_archive(tmp_path / "absent.tgz", tmp_path)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("一（二（三）四）五。", "一五。"),
        ("「一」『二』《三》“四”。", "一二三四。"),
        ("一　二 三?\n四,五", "一二三？四，五。"),
        ("（缺）。一二。（下缺）", "一二。"),
        ("一二。。三，。", "一二。三，"),
    ],
)
def test_clean_text(raw: str, cleaned: str) -> None:
    assert clean_text(raw) == cleaned


def test_length_limits_count_han_alone() -> None:
    assert reason_to_drop("一二三四，五六七。") == "too short"
    assert reason_to_drop("一二三四，五六七八。") is None
    assert reason_to_drop("一" * 401) == "too long"
    assert reason_to_drop("一二三四{五六}七八九十") == "foreign characters"


def test_split_is_pinned_and_about_han_characters_alone() -> None:
    assert split_of(QUATRAIN) == "train"
    assert split_of("诗第五百七首") == "test"
    assert split_of("诗第九百二首") == "validation"
    assert split_of("诗，第五百七。首！") == "test"


def test_cutting_rules() -> None:
    assert cut_quatrains(REGULATED + "一二三四五，") == [REGULATED[:24], REGULATED[24:]]
    assert cut_quatrains("一二三四，五六七八。一二三四，五六七八。") == []
    assert cut_quatrains(QUATRAIN + "一二三四五六七。") == []
    assert cut_couplets(REGULATED) == [("感时花溅泪", "恨别鸟惊心"), ("烽火连三月", "家书抵万金")]
    assert cut_couplets(QUATRAIN) == cut_couplets(REGULATED + QUATRAIN) == []


@given(st.lists(st.sampled_from(["白日依山尽，", "黄河入海流。"]), max_size=13))
def test_quatrains_put_together_are_the_poem(lines: list[str]) -> None:
    whole = len(lines) // 4 * 4
    assert "".join(cut_quatrains("".join(lines))) == "".join(lines[:whole])


def test_no_cut_row_is_in_two_splits(tmp_path: Path) -> None:
    row = {"src_txt": REGULATED}
    files = write_derived_sets({"train": [row], "validation": [], "test": [row]}, tmp_path)
    assert files["quatrains/test.jsonl.gz"]["rows"] == files["couplets/test.jsonl.gz"]["rows"] == 2
    assert files["quatrains/train.jsonl.gz"]["rows"] == files["couplets/train.jsonl.gz"]["rows"] == 0


def test_leak_rate_counts_relatives_in_train() -> None:
    test = [QUATRAIN, REGULATED]
    half = "国破山河在，城春草木深。某某某某某，甲甲甲甲甲。"
    one = "白日依山尽，甲甲甲甲甲。"
    assert leak_rate([one], test) == 0
    assert leak_rate([one, half], test) == 0.5


def test_sample_has_the_sizes_asked_for(corpus: Path, tmp_path: Path) -> None:
    held = {split: len(read_jsonl(corpus / f"poems/{split}.jsonl.gz")) for split in SPLITS}
    sizes: dict[str, int] = {**held, "train": 2}
    entry = write_sample(corpus, tmp_path / "sample.jsonl.gz", sizes)
    assert entry["rows"] == sum(sizes.values())
    with pytest.raises(ValueError, match="ask for fewer"):
        write_sample(corpus, tmp_path / "sample.jsonl.gz", {**sizes, "train": 99})


def test_bundled_samples_hold_their_splits() -> None:
    data = ROOT / "data"
    for name, sizes in (("poems", (4400, 300, 300)), ("poems-300", (240, 30, 30))):
        splits = [split_of(row["src_txt"]) for row in read_jsonl(data / f"{name}.jsonl.gz")]
        assert tuple(map(splits.count, SPLITS)) == sizes == tuple(SAMPLES[name].values())
