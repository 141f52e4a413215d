"""The source: npm package chinese-poetry 2.0.1 (MIT), read as a stream and never extracted to disk."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...system.atomic import remove
from .packages import download, require_published, tar_members

PACKAGE = "chinese-poetry@2.0.1"
ARCHIVE_NAME = "chinese-poetry-2.0.1.tgz"
ARCHIVE_SHA512 = "KtYARvV7CWNtax0na9+Jn6PlhGgSoid7PWyDzXI4KsCEm2odZcqEQyval5koaLygZnM/EQ3lfJ//25K8p3uHNg=="
ROOT = "package/dist/"
ERROR_FOLDER = "quantangshi/error/"

# File (regular expression, under ROOT) → collection. The order is the order of preference among copies of one
# poem: the largest editions come first, anthologies last. Left out on purpose: yuanqu (stage directions mixed
# into the verse), nalanxingde (its paragraphs lack their closing punctuation), prose, primers, and files about poems.
COLLECTIONS: tuple[tuple[str, str], ...] = (
    (r"quantangshi/poet\.tang\.\d+\.json", "quantangshi/tang"),
    (r"quantangshi/poet\.song\.\d+\.json", "quantangshi/song"),
    (r"quantangshi/唐诗补录\.json", "quantangshi/唐诗补录"),
    (r"yudingquantangshi/json/\d+\.json", "yudingquantangshi"),
    (r"songci/ci\.song\.\d+y?\.json", "songci"),
    (r"wudaishici/nantang/poetrys\.json", "wudaishici/nantang"),
    (r"wudaishici/huajianji/huajianji-(\d+|x)-juan\.json", "wudaishici/huajianji"),
    (r"shijing/shijing\.json", "shijing"),
    (r"chuci/chuci\.json", "chuci"),
    (r"caocaoshiji/caocao\.json", "caocaoshiji"),
    (r"shuimotangshi/shuimotangshi\.json", "shuimotangshi"),
    (r"quantangshi/唐诗三百首\.json", "quantangshi/唐诗三百首"),
    (r"songci/宋词三百首\.json", "songci/宋词三百首"),
    (r"mengxue/tangshisanbaishou\.json", "mengxue/tangshisanbaishou"),
    (r"mengxue/qianjiashi\.json", "mengxue/qianjiashi"),
)

_AUTHOR_OF_COLLECTION = {"caocaoshiji": "曹操"}  # its records name no author


class RawPoem(NamedTuple):
    """A poem as the archive has it; paragraphs joined by line feeds."""

    text: str
    title: str
    author: str
    identifier: str


class PoemFile(NamedTuple):
    """The poems of one file; sort by `order` for the order of preference among copies."""

    order: tuple[int, int, str]
    source: str
    poems: list[RawPoem]


def find_or_fetch_archive(path: Path | None, cache_dir: Path) -> Path:
    """The archive: `path` where given, else the copy in cache_dir, fetched there by `npm pack` at first use.

    Raises ValueError when `path` does not exist, when npm is missing or fails, or when the file is damaged.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"no poem archive at {path}: give the path of {ARCHIVE_NAME}, or none to fetch it")
    archive = path or cache_dir / ARCHIVE_NAME
    if not archive.is_file():
        _npm_pack(archive)
    check_integrity(archive)
    return archive


def _npm_pack(archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"npm, which fetches the poem archive {PACKAGE}, is not on PATH: install Node.js, or put {ARCHIVE_NAME} "
            f"into {archive.parent}, or give its path as archive="
        )
    remove(archive.parent / "fetching")  # what an earlier version left when it was killed
    command = [npm, "pack", PACKAGE, "--pack-destination"]
    download("chinese-poetry", archive, f"npm pack {PACKAGE}", lambda partial: [*command, str(partial)])


def check_integrity(archive: Path) -> str:
    """The archive's SHA-512 in base64. ValueError if it bears the published name but not the published digest.

    Any other name is taken for an archive of one's own in the package's layout.
    """
    with archive.open("rb") as stream:
        digest = base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()
    if archive.name == ARCHIVE_NAME:
        require_published(archive, PACKAGE, "SHA-512", digest, ARCHIVE_SHA512)
    return digest


def read_archive(archive: Path, progress: Callable[[float], None]) -> tuple[list[PoemFile], set[str]]:
    """The files of poems in the order of preference, and the ids of the poems listed as faulty.

    `progress` is called with the fraction of the archive read. ValueError for a file that cannot be read.
    """
    files: list[PoemFile] = []
    faulty_ids: set[str] = set()
    try:
        for name, content in tar_members(archive, _wanted, progress):
            order = _order_of(name)
            records = json.loads(content)
            if order is None:
                faulty_ids.update(record["id"] for record in records)
                continue
            source = COLLECTIONS[order[0]][1]
            files.append(PoemFile(order, source, list(_poems(records, source))))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{archive} is not a readable .tgz archive ({name} is not JSON: {error}): fetch it again"
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise ValueError(f"{archive} is not a readable .tgz archive ({error}): fetch it again") from error
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{archive}: {name} doesn't hold poems as {PACKAGE} has them: fetch it again") from error
    if not files:
        raise ValueError(f"{archive} holds no poems under {ROOT}: give the npm package {PACKAGE} as packed")
    return sorted(files, key=lambda file: file.order), faulty_ids


def _wanted(name: str) -> str:
    name = name.removeprefix(ROOT)
    return name if _order_of(name) or name.startswith(f"{ERROR_FOLDER}poet.") else ""


def _order_of(name: str) -> tuple[int, int, str] | None:
    for rank, (pattern, _) in enumerate(COLLECTIONS):
        if re.fullmatch(pattern, name):
            number = re.search(r"\d+", name)
            return rank, int(number.group()) if number else 0, name
    return None


def _poems(records: Any, source: str) -> Iterator[RawPoem]:
    """The poems among `records`, however deep: anthologies nest them by form under "content"."""
    if isinstance(records, dict):
        records = [records]
    for record in records:
        body: Any = next((record[key] for key in ("paragraphs", "content", "para") if record.get(key)), [])
        if not isinstance(body, list):
            continue
        if all(isinstance(paragraph, str) for paragraph in body):
            title = record.get("title") or record.get("chapter") or record.get("rhythmic") or ""
            author = record.get("author") or _AUTHOR_OF_COLLECTION.get(source, "")
            yield RawPoem("\n".join(body), title, author, record.get("id") or "")
        else:
            yield from _poems(body, source)
