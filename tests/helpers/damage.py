"""Damage to files, and requests that nobody should send: what tests/workflow/fuzz.py draws by the thousand.

`damage` changes a folder, `request_body` makes what a client might send; both follow from the generator given alone.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

NUMBERS = (0, 1, -1, 2, 7, 255, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**64, 10**30, 1e308, -0.5, float("nan"))
ODD: tuple[Any, ...] = (
    *NUMBERS, None, True, "", "x", "7", "春" * 1000, "../../etc/passwd", "/dev/zero", "\x00", "!!python/name:os.system",
    "${oc.env:HOME}", "${model}", [], {}, [None], [[[]]], {"a": 1}, ["F32"], "F64", "I64", "bfloat16", [10**9, 10**9],
    [-1], [2**63], [0, 2**62],
)  # fmt: skip
TEXTS = (
    b"", b"\n", b"null", b"[]", b"{}", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"a: b: c",
    b"&a [*a]", b"!!python/object/apply:os.system ['true']", b"? [a]\n: b\n", b"- a\n- b\n", b"\x80\x04.",
    b"PK\x03\x04",
    b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
    ),
    b"vocab_size: 1e9999\n", b"hidden_size: ${hidden_size}\n", b"num_hidden_layers: 1000000000\n",
)  # fmt: skip


def damage(folder: Path, draw: random.Random) -> str:
    """One to three changes; returns what was done."""
    return "; ".join(change(folder, draw) for _ in range(draw.choice([1, 1, 1, 2, 3])))


def change(folder: Path, draw: random.Random) -> str:
    files = sorted(path for path in folder.rglob("*") if readable(path))
    if not files:
        return "nothing left"
    path = draw.choice(files)
    changes: list[Callable[[Path, random.Random], str]] = [flip, cut, insert, remove_part, replace_text, misplace]
    if path.suffix in (".json", ".yaml"):
        changes += [change_value] * 8
    if path.suffix == ".safetensors":
        changes += [change_header] * 6
    made = draw.choice(changes)
    return f"{made.__name__} {path.relative_to(folder)}: {made(path, draw)}"


def readable(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 10_000_000


def flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [draw.randrange(len(content)) for _ in range(draw.choice([1, 1, 2, 16]))] if content else []
    for place in places:
        content[place] = draw.randrange(256)
    path.write_bytes(bytes(content))
    return str(places)


def cut(path: Path, draw: random.Random) -> str:
    size = path.stat().st_size
    left = draw.choice([0, 1, 8, size // 2, max(0, size - 1), draw.randrange(size + 1)])
    os.truncate(path, min(left, size))
    return str(left)


def insert(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    place = draw.randrange(len(content) + 1)
    piece = draw.choice([draw.randbytes(draw.choice([1, 8, 1000])), b"\x00" * 64, content[:100], b"\xff" * 8])
    path.write_bytes(content[:place] + piece + content[place:])
    return f"{len(piece)} bytes at {place}"


def remove_part(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    start = draw.randrange(len(content) + 1)
    end = min(len(content), start + draw.choice([1, 4, 100]))
    path.write_bytes(content[:start] + content[end:])
    return f"{start}:{end}"


def replace_text(path: Path, draw: random.Random) -> str:
    text = draw.choice(TEXTS)
    path.write_bytes(text)
    return repr(text[:40])


def misplace(path: Path, draw: random.Random) -> str:
    """Missing, a folder, a dangling link, another's content, or (but for weights, which may be) too large."""
    text = path.suffix in (".json", ".yaml", ".txt")
    how = draw.choice(["missing", "folder", "link to itself", "another's content"] + ["huge and empty"] * text)
    if how == "another's content":
        others = sorted(other for other in path.parent.iterdir() if readable(other))
        path.write_bytes(draw.choice(others).read_bytes())
        return how
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link to itself":
        path.symlink_to(path.name)
    elif how == "huge and empty":  # as a file without blocks: what reads it whole takes 20 GB
        path.touch()
        os.truncate(path, 20_000_000_000)
    return how


def change_value(path: Path, draw: random.Random) -> str:
    """A value of a JSON or YAML file, however deep, or its key."""
    try:
        content = json.loads(path.read_bytes()) if path.suffix == ".json" else yaml.safe_load(path.read_bytes())
    except Exception:
        return "unreadable already"
    places = list(leaves(content))
    if not places:
        return "no value in it"
    holder, key = draw.choice(places)
    value = draw.choice(ODD)
    how = draw.choice(["set", "set", "set", "delete", "rename"])
    if how == "delete" or (how == "rename" and isinstance(holder, list)):
        del holder[key]
    elif how == "rename":
        holder[str(draw.choice(ODD))] = holder.pop(key)
    else:
        holder[key] = value
    text = json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8", errors="replace")
    return f"{how} {key!r} {str(value)[:40]!r}"


def leaves(content: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value, those that hold others included; of a long list or mapping the first few."""
    if not isinstance(content, (dict, list)):
        return
    for key in list(content)[:40] if isinstance(content, dict) else range(min(len(content), 3)):
        yield content, key
        yield from leaves(content[key])


def change_header(path: Path, draw: random.Random) -> str:
    """What a safetensors file says of its tensors, or how long that is."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return "unreadable already"
    if draw.random() < 0.2:
        size = draw.choice([0, 1, 2**60, 2**63, size + 1, size - 1, len(content), 10**8])
        path.write_bytes(size.to_bytes(8, "little") + content[8:])
        return f"length {size}"
    holder, key = draw.choice(list(leaves(header)))
    holder[key] = draw.choice(ODD)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"{key!r} {str(holder[key])[:40]!r}"


def request_body(draw: random.Random) -> Any:
    """What a client may send: sound, odd, or no request at all. For predict here, and for servers as JSON."""
    text = draw.choice(
        ["春", "", " ", "白日依山尽，" * draw.choice([1, 3, 4000]), "a\x00b", "\ud83d", "<|endoftext|>", "{src_txt}"]
    )
    texts = draw.choice([[text], [text, "秋"], text, [text] * 5, [[text]], [], [None], [7], [True], {"a": text}, *ODD])
    inputs = draw.choice([{"src_txt": texts}, {"src_txt": texts}, {"src_txt": texts}, {"text": texts}, texts, None])
    params: Any = {
        name: draw.choice(ODD)
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop", "unknown")
        if draw.random() < 0.08
    }
    if draw.random() < 0.4:
        inputs = {"src_txt": [text, "春"]}
    sound = {"max_new_tokens": draw.choice([1, 3, 10**6]), "temperature": draw.choice([0, 0.001, 1.0, 1000])}
    params = draw.choice([params, params, sound | params, sound, None, [], "x"])
    if draw.random() < 0.15:
        return draw.choice([{"inputs": inputs}, *ODD])
    return {"inputs": inputs, "params": params}
