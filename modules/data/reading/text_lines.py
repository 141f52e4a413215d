"""A text file → its lines, with no more of it in memory than one; what isn't UTF-8 is named with its place."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..quarantine import DataError, Findings
from .column_names import SEPARATORS, plain

MAX_LINE_BYTES = 10_000_000  # one 50 MB line would otherwise take over 600 MB of memory before anyone notices

LONE_CR = "carriage return inside the line"
LONE_CR_REMEDY = "; end the lines with \\n (tr '\\r' '\\n')"

BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}

MAGIC = {
    b"PAR1\x15": "a Parquet file; rename it to .parquet",
    b"\x1f\x8b": "packed by gzip; add .gz to its name",
    b"PK\x03\x04": "a zip archive, or an Excel workbook (.xlsx); unpack it, or save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls) or Word document; save it as CSV UTF-8 or plain text",
    b"%PDF-": "a PDF; save its text as .txt",
    b"ARROW1\0\0": "an Arrow file; write it as Parquet",
    b"\xfd7zXZ\0": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"7z\xbc\xaf\x27\x1c": "packed by 7-Zip; unpack it",
}
"""How a file of another kind begins → what it is, and what to do."""

_HEAD_BYTES = 4096

Row = tuple[int, Mapping[str, object]]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. DataError for what isn't text, and UTF-16 that no byte order mark gives away.

    Where UTF-16 is ASCII it is UTF-8 too, with a NUL beside each letter.
    """
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        if kind := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None):
            raise DataError(f"{path} is {kind}")
        if encoding := unmarked_utf16(head):
            raise DataError(f"{path} is {encoding} without a byte order mark, not UTF-8; {_conversion(encoding)}")
        yield cast("IO[bytes]", file)


def unmarked_utf16(head: bytes) -> str | None:
    """UTF-16LE or UTF-16BE, where these are how a file begins; None for UTF-8 that only holds a NUL somewhere."""
    if b"\0" not in head or head.startswith(tuple(BYTE_ORDER_MARKS)):
        return None
    try:
        head.decode("utf-8")
        is_utf8 = True
    except UnicodeDecodeError as error:
        is_utf8 = error.start > len(head) - 4  # the last character may be cut in two
    for encoding in ("UTF-16LE", "UTF-16BE"):
        text = head[: len(head) // 2 * 2].decode(encoding, "ignore")
        is_text = all(unicodedata.category(c) not in ("Cc", "Cn", "Co") or c in "\r\n\t" for c in text)
        if is_text and ((len(text) > 1 and text[:2].isascii()) or ("\n" in text and not is_utf8)):
            return encoding
    return None


def decode(raw: bytes, path: Path, first_line: int, tolerant: bool = False) -> str:
    """tolerant: bytes that aren't UTF-8 become surrogates, which the check of the values finds in their row."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if tolerant:
            return raw.decode("utf-8", "surrogateescape")
        line = first_line + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        marks = BYTE_ORDER_MARKS.items() if first_line == 1 else ()
        encoding = next((encoding for mark, encoding in marks if raw.startswith(mark)), "GBK")
        place = f"{path}:{line}: byte {byte} of the line (0x{raw[error.start]:02x}) is not UTF-8"
        raise DataError(f"{place}; {_conversion(encoding)}") from error
    # Editors on Windows put a byte order mark first; kept, it would become part of the first column's name.
    return text.removeprefix("\ufeff") if first_line == 1 else text


def _conversion(encoding: str) -> str:
    return (
        f"convert the file with iconv -f {encoding} -t UTF-8 (its true encoding in place of {encoding} if that fails)"
    )


def read_lines(path: Path, findings: Findings) -> Iterator[str]:
    """Lines with their line ends. Split at \\n alone: splitlines would also cut at U+2028 inside a text."""
    with opened(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}:{number}: line over {MAX_LINE_BYTES // 1_000_000} MB;"
                    " split it into several rows, and check that the line ends are \\n"
                )
            # Of the first line, a header or a byte order mark, everything else depends.
            yield decode(raw, path, number, findings.tolerant and number > 1)


def txt_rows(path: Path, findings: Findings) -> Iterator[Row]:
    header: tuple[int, str] | None = None
    for number, line in enumerate(read_lines(path, findings), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if not text or text.isspace():
            continue
        if header:
            break
        if not findings.columns and (kind := kind_of_line(text)):
            header = number, kind
            continue
        findings.columns["src_txt"] = None
        if "\r" in text:
            findings.note(number, LONE_CR, LONE_CR_REMEDY, text)
        else:
            yield number, {"src_txt": text}
    if header:
        number, kind = header
        raise findings.error(
            number, f"a line as in a {kind}, but in a .txt every line is a text; rename the file to {kind}"
        )


def kind_of_line(line: str) -> str | None:
    """.jsonl, .json, .csv or .tsv for the first line of such a file, whatever its name; None for any other text."""
    value: Any = None
    if line.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, dict) and value:
        return ".jsonl"
    if isinstance(value, list) and value and all(isinstance(part, (dict, str)) for part in value):
        return ".json"
    for separator in SEPARATORS:
        if plain("src_txt") in map(plain, line.split(separator)):
            return ".tsv" if separator == "\t" else ".csv"
    return None
