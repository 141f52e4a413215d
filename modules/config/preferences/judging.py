"""prepare source=judged: preference rows from a model's own answers, ranked by the metrics of a task."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

from ..base import MODEL, changed, too_small
from ..data import JUDGED, DataConfig, PrepareConfig
from ..evaluation import MAIN_MEASURE, MEASURES, TaskConfig
from ..generation import GenerationConfig


@dataclass
class PreparingConfig(PrepareConfig):
    """Real text → clean train/validation/test files; or a model's answers → preference rows (source=judged)."""

    model: str | None = field(default=None, metadata=MODEL)
    """For judged: whose answers; a model folder or a models:/ URI."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """For judged: task=NAME reads conf/task/NAME.yaml: how the model is asked, and by what it can be judged."""
    data: DataConfig = field(default_factory=DataConfig)
    """For judged: the prompts are those of its training rows; unset: the rows of the model's own training, or the
    task's."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """For judged: how answers are sampled."""
    prompts: int = 1000
    """For judged: so many training rows, drawn by seed, are asked."""
    answers: int = 8
    """For judged: so many answers to each, of which the best and the worst become a row."""
    judge: dict[str, float] = field(default_factory=dict)
    """For judged: measures by the names that evaluate logs, and how much each counts: {rhyme: 1}. Where less is better
    it is subtracted. Unset: the task's first measure that compares with the rows' answers."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """For judged: number format to compute in, as of evaluate."""

    @property
    def is_judged(self) -> bool:
        return self.source == JUDGED

    @property
    def judges(self) -> dict[str, float]:
        """`judge`, or what it is where it is unset."""
        main = next((MAIN_MEASURE[metric] for metric in self.task.metrics if metric in MAIN_MEASURE), None)
        return self.judge or ({main: 1.0} if main and main in KNOWN else {})

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.is_judged:
            yield from self.judging_complaints()
            return
        usual = {entry.name for entry in fields(PrepareConfig)}
        for name in changed(self, PreparingConfig()):
            if name not in usual:
                yield f"{name} goes with source={JUDGED} alone"

    def judging_complaints(self) -> Iterator[str]:
        if not self.model:
            yield f"source={JUDGED} needs model=FOLDER (or a models:/ URI): whose answers shall be judged?"
        if self.data.mix:
            yield "data.mix: one set is asked at a time; give data.path, and the others in commands of their own"
        yield from too_small(self, 1, "prompts")
        yield from too_small(self, 2, "answers")
        if self.generation.temperature == 0 or self.generation.num_beams > 1:
            yield (
                "generation.temperature=0 and beams write the same answer each time, and nothing is better or worse: "
                "give generation.temperature=1 generation.num_beams=1"
            )
        if self.judge and not any(self.judge.values()):
            yield "judge weighs nothing: give a measure a weight other than 0, e.g. judge={rhyme: 1}"
        for name in self.judge:
            if name not in KNOWN:
                near = difflib.get_close_matches(name, KNOWN, 1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(KNOWN)}"
                yield f"judge.{name}: no such measure; {hint}"
        if not self.judges:
            yield f"judge must be given, e.g. judge={{rhyme: 1}}: there is {', '.join(KNOWN)}"


KNOWN = {measure: metric for metric, measures in MEASURES.items() for measure in measures}
"""What answers can be judged by → the metric of the task that it is a measure of."""
