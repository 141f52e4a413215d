"""Archives that mean harm: nothing is written but the data folder, and no bomb unfolds."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from modules.data.corpora.poems import build_corpus

POEMS_OF_SHIJING = json.dumps([{"title": "关雎", "content": ["关关雎鸠，在河之洲。", "窈窕淑女，君子好逑。"]}]).encode()


def write_members(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b"") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, content


def test_nothing_of_an_archive_is_written_outside_of_the_data_folder(tmp_path: Path) -> None:
    wanted = "package/dist/shijing/shijing.json"
    members = [
        member("../escaped.json", content=b"[]"),
        member(str(tmp_path / "absolute.json"), content=b"[]"),
        member("package/dist/../../../escaped.json", content=b"[]"),
        member("package/dist/quantangshi/poet.tang.0.json", tarfile.SYMTYPE, "/etc/passwd"),
        member("package/dist/quantangshi/poet.tang.1.json", tarfile.LNKTYPE, "/etc/passwd"),
        member("package/dist/quantangshi/poet.tang.2.json", tarfile.CHRTYPE),
        member("package/dist/quantangshi/poet.tang.3.json", tarfile.FIFOTYPE),
        member("package/dist/quantangshi/poet.tang.4.json", tarfile.DIRTYPE),
        member("package/dist/shijing", tarfile.SYMTYPE, str(tmp_path)),
        member(wanted, content=POEMS_OF_SHIJING),
    ]
    archive = write_members(tmp_path / "evil.tgz", members)
    build_corpus(archive, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tgz", "out"}
    assert not (tmp_path.parent / "escaped.json").exists()
    written = {path.parent.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"out", "poems", "quatrains", "couplets"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_UNPACKED", 50_000, "it unpacks to over 50,000 bytes"),
        ("MAX_FILE", 50_000, r"shijing\.json is over 50,000 bytes"),
        ("MAX_FILES", 3, "it holds over 3 files"),
    ],
)
def test_bombs_are_refused(
    limit: str, value: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"modules.data.corpora.packages.{limit}", value)
    members = [member(f"package/{number}") for number in range(4)]
    archive = write_members(
        tmp_path / "a.tgz", [*members, member("package/dist/shijing/shijing.json", content=b" " * 100_000)]
    )
    with pytest.raises(ValueError, match=rf"a\.tgz is not a readable \.tgz archive \(.*{reason}\)"):
        build_corpus(archive, tmp_path / "out")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b"\xff", b'[{"id": {}}, "x"]'])
def test_files_of_another_kind_are_named(content: bytes, tmp_path: Path) -> None:
    for name in ("shijing/shijing.json", "quantangshi/error/poet.tang.0.json"):
        archive = write_members(tmp_path / "a.tgz", [member(f"package/dist/{name}", content=content)])
        with pytest.raises(ValueError, match=r"a\.tgz"):
            build_corpus(archive, tmp_path / "out")
