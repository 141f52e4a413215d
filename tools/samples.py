"""Writes docs/samples.md: what a model makes of data/openings.txt, all of it. python -m tools.samples [model]"""

from __future__ import annotations

import sys
from pathlib import Path

from modules.config.base import POEMS
from pipelines import pipeline

ROOT = Path(__file__).parents[1]
SETTINGS = {"max_new_tokens": 96, "top_p": 0.9, "seed": 7}


def main(model: str = POEMS) -> None:
    openings = (ROOT / "data" / "openings.txt").read_text(encoding="utf-8").split()
    generator = pipeline("text-generation", model=model, **SETTINGS)
    told = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
    lines = [
        "# Fifty openings, continued",
        f"By `python -m tools.samples {model}` ({told}; the first try of each, none left out). The openings are first",
        "clauses of poems that the model wasn't trained on; what follows them is the model's.",
        "",
        "| Opening | Continuation |",
        "|---|---|",
    ]
    for opening, result in zip(openings, generator(openings), strict=True):
        continuation = result["text"].removeprefix(opening).replace("|", "\\|").replace("\n", "<br>")
        lines.append(f"| {opening} | {continuation} |")
    (ROOT / "docs" / "samples.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
