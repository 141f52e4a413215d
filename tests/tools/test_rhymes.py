"""The table of rhymes from packages' wheels, here with a few characters in them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from modules.inference.verse.rhymes import TABLE
from tools.rhymes import GUANGYUN, PINGSHUI, write_rhymes

LISTED = {"上平声一东": "東風", "下平声一先": "天", "去声十七霰": "先", "入声十药": "鐘"}
OLD = """資料名稱,韻部原貌,字頭覈校前,字頭
廣韻,先,先,
廣韻,線,先,
廣韻,先,風,
廣韻,齊,啼,
廣韻,模,爈爐,
廣韻,模,,爐
王一,東,躬,
"""


def test_the_second_table_adds_characters_and_the_readings_that_are_asked_for(tmp_path: Path) -> None:
    names = [line.split("\t")[0] for line in TABLE.read_text(encoding="utf-8").splitlines()]
    rhymes = {name: [LISTED.get(name, "")] for name in names}
    pingshui, qieyun, table = tmp_path / "pingshui.whl", tmp_path / "qieyun.whl", tmp_path / "table.tsv"
    with zipfile.ZipFile(pingshui, "w") as packed:
        packed.writestr(PINGSHUI, json.dumps({"ping": {"all": rhymes}, "ze": {}}))
    with zipfile.ZipFile(qieyun, "w") as packed:
        packed.writestr(GUANGYUN, OLD)
    write_rhymes(pingshui, qieyun, table)
    found = dict(line.split("\t") for line in table.read_text(encoding="utf-8").splitlines())
    assert list(found) == names
    assert found["上平声一东"].startswith("东東风風")
    assert found["下平声一先"].startswith("天先")  # 先 is asked for, 风 isn't
    assert "风" not in found["下平声一先"]
    assert found["上平声八齐"].startswith("啼")
    assert {*"炉爐"} <= {*found["上平声七虞"]}
    assert {*"钟鐘"} <= {*found["入声十药"]}
    assert "慚" not in "".join(found.values())
    assert "躬" not in "".join(found.values())  # another book
    assert "着" in found["入声十药"]
