"""The section of a task: what its rows are scored by, and how a model is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .sections import too_small

LIKELIHOOD_METRICS = ("perplexity", "choices")
TEXT_METRICS = ("rouge", "bleu", "slots", "exact_match", "repetition", "length", "verse", "couplet")
"""Those of texts that are generated."""
TRIVIAL = ("reference", "lead", "copy", "most_frequent", "nearest")


@dataclass
class TaskConfig:
    """What rows are scored by, and how a model is asked (docs/tasks.md)."""

    name: str = ""
    """What the results are filed under; set by task=NAME."""
    metrics: list[str] = field(default_factory=lambda: ["perplexity"])
    """Of likelihood: perplexity, choices; of generated texts: rouge, bleu, slots, exact_match, repetition, length,
    verse, couplet."""
    trivial: list[str] = field(default_factory=list)
    """What stands beside the model: reference (the rows' own targets: what people score), lead (the source's first
    sentence), copy (the source), most_frequent (training target), nearest (the target of the training row whose source
    shares the most characters)."""
    template: str | None = None
    """How to ask a model without a prompt template of its own, e.g. "{src_txt}\\n摘要："; unset: the data set's."""
    own_template: bool = True
    """Ask a model that was tuned on src_txt → tgt_txt as it was tuned; false: with task.template all the same."""
    examples: int = 0
    """Solved training rows before each question (few-shot), drawn by seed for each row."""
    separator: str = "\n\n"
    """Between them; it also ends an answer, where there are examples."""
    rows: int | None = None
    """Texts are generated for so many test rows, drawn by seed; unset: for all. Likelihood is always of all."""
    tokenize: Literal["zh", "char", "13a", "none"] = "zh"
    """sacrebleu's tokenizer for BLEU. zh: Chinese by characters, the rest by words; char: all by characters."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "examples")
        yield from too_small(self, 1, "rows")
        for given, known in (("metrics", (*LIKELIHOOD_METRICS, *TEXT_METRICS)), ("trivial", TRIVIAL)):
            for name in getattr(self, given):
                if name not in known:
                    yield f"{given} holds {name}, which isn't one of {', '.join(known)}"
        if not self.metrics:
            yield "metrics must name at least one"
        if self.template is not None and self.template.count("{src_txt}") != 1:
            yield f'template ({self.template!r}) must hold "{{src_txt}}" exactly once'
        if self.examples and not self.separator:
            yield "separator must not be empty: nothing would part the examples"
