"""What it costs a model to keep a form: poems from the same openings without `form`, with it, and with the tones too.

python -m benchmarks.measure_form_kept [MODEL [ROWS]]: models/poems and 100.

Openings are the first lines of the first bundled test poems that are 绝句 or 律诗, each continued in its poem's form,
sampled with top_p=0.9, seed=7. Form and rhyme are as evaluate judges them; perplexity is the model's own, a token of
what it wrote (end-of-text too), by its distribution without any mask.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from modules.checkpoint.loading import load_verified
from modules.config.base import POEMS, model_folder
from modules.config.generation import GenerationConfig
from modules.data.corpora.folders import SAMPLE
from modules.data.corpora.verse import clauses, split_of
from modules.evaluation.statistics import mean
from modules.evaluation.verse.form import alternation, line_lengths, opposition, regular, rhyming
from modules.inference.text_generator import Continuation, TextGenerator
from modules.system.jsonl import read_jsonl

FORM = {(4, 5): "五绝", (4, 7): "七绝", (8, 5): "五律", (8, 7): "七律"}
RULES = {"quatrain or regulated": regular, "rhyme": rhyming, "tones alternate": alternation, "tones oppose": opposition}
COLUMNS = ("form asked for", *RULES, "ended", "perplexity", "characters")


def openings(count: int) -> list[tuple[str, str]]:
    """(first line with its mark, form) of test poems."""
    poems = [row["src_txt"] for row in read_jsonl(SAMPLE) if split_of(row["src_txt"]) == "test"]
    chosen = [poem for poem in poems if regular(poem) == 1.0][:count]
    return [(f"{clauses(poem)[0]}，", FORM[len(line_lengths(poem)), line_lengths(poem)[0]]) for poem in chosen]


def written(generator: TextGenerator, asked: list[tuple[str, str]], form: bool, tones: bool) -> list[Continuation]:
    found: dict[int, Continuation] = {}
    for name in FORM.values():
        rows = [row for row, (_, wanted) in enumerate(asked) if wanted == name]
        given = {"form": name, "tones": tones} if form else {}
        config = GenerationConfig(max_new_tokens=128, top_p=0.9, seed=7, **given)  # type: ignore[arg-type]
        prompts = generator.encode([asked[row][0] for row in rows])
        found |= zip(rows, generator.write_ids(prompts, config, logprobs=0), strict=True)
    return [found[row] for row in range(len(asked))]


def measures(asked: list[tuple[str, str]], rows: list[Continuation]) -> list[str]:
    texts = [opening + row.text for (opening, _), row in zip(asked, rows, strict=True)]
    shapes = [(len(lengths), lengths[0]) if len(set(lengths := line_lengths(text))) == 1 else None for text in texts]
    kept = [
        float(shape is not None and FORM.get(shape) == form) for shape, (_, form) in zip(shapes, asked, strict=True)
    ]
    shares = [np.mean(kept), *(mean(name, [rule(text) for text in texts]).value for name, rule in RULES.items())]
    shares.append(np.mean([row.stopped for row in rows]))
    surprise = [-score.logprob for row in rows for score in row.scores if score.logprob is not None]
    perplexity = math.exp(sum(surprise) / len(surprise))
    return [*(f"{share:.3f}" for share in shares), f"{perplexity:.2f}", f"{np.mean([*map(len, texts)]):.0f}"]


def main(model: str, count: int) -> None:
    generator, asked = TextGenerator(*load_verified(model_folder(model))), openings(count)
    print(f"{len(asked)} openings of test poems, {model}\n\n| | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
    for name, form, tones in (("without", False, False), ("form", True, False), ("form, tones", True, True)):
        print(f"| {name} | {' | '.join(measures(asked, written(generator, asked, form, tones)))} |", flush=True)


if __name__ == "__main__":
    main(*(sys.argv[1:2] or [POEMS]), int((sys.argv[2:3] or ["100"])[0]))
