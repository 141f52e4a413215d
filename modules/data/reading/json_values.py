"""JSON files and Python containers: objects with columns, columns of lists, or texts alone."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..quarantine import DataError, Findings
from .split_names import SPLIT_NAMES
from .text_lines import Row, decode, kind_of_line, opened, read_lines

MAX_JSON_BYTES = 1_000_000_000
"""Of a .json file, which is read whole, unpacked."""

NAMES_OF_SPLITS = {name for names in SPLIT_NAMES.values() for name in names}


def column_rows(table: Mapping[str, object], findings: Findings) -> Iterator[Row]:
    """Rows of {"column": [value, …], …}; DataError unless all are lists of one length."""
    for name, values in table.items():
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            raise DataError(
                f"{findings.where}: column {name!r} is a {type(values).__name__}, not a list;"
                ' write a list of objects or {"column": [value, …]}'
            )
    findings.columns.update(dict.fromkeys(table))
    columns = cast("Mapping[str, Sequence[object]]", table)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{findings.where}: columns differ in length: {lengths}; give each the same number of rows")
    for position, values in enumerate(zip(*columns.values(), strict=True), 1):
        yield position, dict(zip(columns, values, strict=True))


def object_rows(numbered: Iterable[tuple[int, object]], findings: Findings, what: str = "a") -> Iterator[Row]:
    """Rows of objects {"column": value, …}, or of texts where the first is one; anything else is noted as a bad row.

    what: what a bad row is called before its type.
    """
    only_texts: bool | None = None
    for position, row in numbered:
        if only_texts is None:
            only_texts = isinstance(row, str)
        if only_texts and isinstance(row, str):
            findings.columns["src_txt"] = None
            yield position, {"src_txt": row}
        elif isinstance(row, Mapping) and not only_texts:
            findings.columns.update(dict.fromkeys(row))
            yield position, row
        else:
            wanted = "a string like the first row" if only_texts else "an object with columns"
            findings.note(position, f"{what} {type(row).__name__}, not {wanted}", remedy_of(row), row)


def remedy_of(row: object) -> str:
    """What to do with a row that is a list: of messages, or of rows."""
    if not isinstance(row, Sequence) or not row or not all(isinstance(part, Mapping) for part in row):
        return ""
    if all({"role", "from"} & part.keys() for part in row):
        return '; write a conversation as {"messages": [{"role": …, "content": …}, …]}'
    return "; write each of its objects as a row of its own, or the list alone as a .json file"


def decoder_for(used: Collection[str]) -> json.JSONDecoder:
    """That refuses a key given twice, if it is one of `used`. Made once: json.loads would build one for every line."""
    return json.JSONDecoder(object_pairs_hook=functools.partial(_object, used), parse_int=_number)


def _number(digits: str) -> float:
    """Python refuses integers of thousands of digits; as infinity one is a number all the same."""
    return int(digits) if len(digits) < sys.int_info.default_max_str_digits else float(digits)


def _object(used: Collection[str], pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        if any(name in used and names.count(name) > 1 for name in row):
            raise ValueError("a key is given twice")
    return row


def jsonl_rows(path: Path, findings: Findings, used: Collection[str]) -> Iterator[Row]:
    yield from object_rows(_values(path, findings, decoder_for(used)), findings, "a JSON")


def _values(path: Path, findings: Findings, decoder: json.JSONDecoder) -> Iterator[tuple[int, object]]:
    """(line, its value) of the lines that are JSON."""
    first = True
    for number, line in enumerate(read_lines(path, findings), 1):
        if line.isspace():
            continue
        try:
            yield number, decoder.decode(line)
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                if first and (other := _other_layout(line, error, path)):
                    raise findings.error(number, other) from error
            findings.note(number, "invalid JSON", f" ({reason})", line)
        first = False


def _other_layout(line: str, error: json.JSONDecodeError, path: Path) -> str | None:
    """What a file is whose first line isn't a JSON value; None where it is that line alone that is broken."""
    stripped = line.strip()
    if stripped[:1] in ("{", "[") and error.pos >= len(line.rstrip()):
        if stripped.startswith("["):
            return f"a JSON list over several lines; {path.suffix} has an object a line: rename the file to .json"
        return (
            f"a JSON object over several lines; {path.suffix} has one a line:"
            f" jq -c . {path.name} > NEW.jsonl writes it so"
        )
    if kind := kind_of_line(stripped):
        return f"a line as in a {kind}, not JSON; rename the file to {kind}"
    return None


def json_rows(path: Path, findings: Findings, used: Collection[str]) -> Iterator[Row]:
    with opened(path) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(f"{path}: over {MAX_JSON_BYTES // 1_000_000} MB; write an object a line, as .jsonl, instead")
    text = decode(raw, path, 1)
    if not text.strip():
        return
    try:
        content = decoder_for(used).decode(text)
    except json.JSONDecodeError as error:
        hint = "one object a line belongs in a .jsonl file" if error.msg == "Extra data" else "correct it"
        if error.msg == "Extra data" and text.lstrip().startswith("["):
            hint = f"several lists in one file: jq -s add {path.name} > NEW.json makes them one"
        fault = f"{error.msg.removesuffix(' at')}, column {error.colno}"
        raise DataError(f"{path}:{error.lineno}: invalid JSON ({fault}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON ({error}); correct it") from error
    content = unwrapped(content, path)
    if isinstance(content, dict):
        yield from column_rows(content, findings)
    elif isinstance(content, list):
        yield from object_rows(enumerate(content, 1), findings)
    else:
        raise DataError(f'{path}: a JSON {type(content).__name__}; write a list of objects or {{"column": [value, …]}}')


def unwrapped(content: Any, path: Path) -> Any:
    """The one list of objects in {"version": …, "data": [{…}, …]}, or what the hub's viewer gives; else the content."""
    if _is_list_of_objects(content) and len(content) == 1 and _is_page(content[0]):
        content = content[0]
    if not isinstance(content, dict):
        return content
    if _is_page(content):
        return _rows_of_page(content, path)
    inside = [name for name, value in content.items() if _is_list_of_objects(value)]
    lists = [name for name, value in content.items() if isinstance(value, list)]
    if len(inside) == len(lists) == 1:
        return content[inside[0]]
    are_columns = len(inside) < len(lists) and len({len(content[name]) for name in lists}) == 1
    if len(lists) > 1 and ((inside and not are_columns) or set(lists) <= NAMES_OF_SPLITS):
        example = f"jq '.\"{lists[0]}\"' {path.name} > FOLDER/{lists[0]}.json"
        kind = "splits" if {name.lower() for name in lists} <= NAMES_OF_SPLITS else "several lists of rows"
        raise DataError(
            f"{path} holds {kind} ({', '.join(lists)}), and a file is one: write each to a file of its own,"
            f" {example}, and give the folder"
        )
    return content


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_page(value: Mapping[str, Any]) -> bool:
    """Of rows, as the Hugging Face dataset viewer's API answers."""
    rows = value.get("rows")
    return "features" in value and _is_list_of_objects(rows) and all("row" in row for row in rows or ())


def _rows_of_page(page: Mapping[str, Any], path: Path) -> list[Any]:
    rows = page["rows"]
    total = page.get("num_rows_total", len(rows))
    cut = sum(bool(row.get("truncated_cells")) for row in rows)
    if total != len(rows) or cut:
        lacking = f"{cut} rows cut short" if cut else f"{len(rows)} of {total} rows"
        raise DataError(
            f"{path}: a page of the dataset viewer with {lacking}; download the dataset's files, or give its name"
        )
    return [row["row"] for row in rows]
