"""The commands that are no stage of their own section, and the list of all: STAGES."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from ..system.bounded_read import read_plain_yaml
from ..system.paths import expanded
from .assignments import COMMAND_LINE, Assignment
from .base import LINES, MISSING, PATH, CommandConfig, StageConfig, changed, too_small
from .data import JUDGED, POEM_DATA, TASK_DATA, PrepareConfig
from .evaluation import EvaluateConfig, RegisterConfig
from .generation import ServeConfig
from .model import SizeConfig
from .prediction import GenerateConfig, PredictConfig
from .preferences.judging import PreparingConfig
from .preferences.preference import PreferConfig
from .sweeps.command import SweepConfig
from .training import TrainingConfig


@dataclass
class VocabularyConfig:
    """More tokens for a model that is to learn other text than its vocabulary was made for."""

    path: str | None = field(default=None, metadata=PATH)
    """Rows to learn them from: those that the model will be trained on, as data.path takes them, or several of such,
    '[prepared/a,prepared/b]'."""
    new_tokens: int = 4000
    """The most that are added: characters without a token first, then what often stands together."""
    min_frequency: int = 30
    """What occurs less often in these rows gets no token."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "new_tokens", "min_frequency")
        if not self.path:
            for name in changed(self, VocabularyConfig()):
                yield f"{name} has no effect without vocabulary.path, the rows to learn tokens from"


@dataclass
class ConvertConfig(CommandConfig):
    """A model folder from one format to another, bit by bit."""

    source: str = field(default=MISSING, metadata=PATH)
    """A folder of any format, a training checkpoint too, or a models:/ URI of moyun's."""
    target: str = field(default=MISSING, metadata=PATH)
    """The new folder; nothing is overwritten."""
    adapter: str | None = field(default=None, metadata=PATH)
    """A folder of adapters trained on the source (outputs/…/adapter, or PEFT's), to be merged into the target."""
    prompt_template: str | None = field(default=None, metadata=LINES)
    """The target's, with {src_txt} in it; unset: the adapter's or, where that tells none, the source's."""
    format: Literal["moyun", "huggingface", "modelscope", "megatron", "gguf", "peft"] = "moyun"
    """Of the target. modelscope: the layout of base and large; megatron: that of 1.3B and up; gguf: for llama.cpp;
    peft: the adapter alone, for PEFT on the source's huggingface export."""
    tensor_parallel: int = 1
    """For format=megatron: into how many shards, one a device; must divide heads and vocabulary."""
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0"] = "keep"
    """Number format of the target; keep: the source's; q8_0 (format=gguf): 8 bits, with a scale every 32 numbers."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "tensor_parallel")
        if self.tensor_parallel > 1 and self.format != "megatron":
            yield f"tensor_parallel={self.tensor_parallel} needs format=megatron; format={self.format} isn't cut"
        if self.dtype == "q8_0" and self.format != "gguf":
            yield f"dtype=q8_0 needs format=gguf; format={self.format} can't hold it"
        if self.format == "peft" and (self.adapter is None or self.dtype != "keep"):
            yield "format=peft writes an adapter as it is: give adapter=FOLDER, and leave dtype out"
        if self.format == "peft" and self.vocabulary.path:
            yield "format=peft writes an adapter alone, and no tokens beside it; leave vocabulary.path out"
        if self.prompt_template is not None and self.prompt_template.count("{src_txt}") != 1:
            yield f'prompt_template ({self.prompt_template!r}) must hold "{{src_txt}}" exactly once'


@dataclass
class CompareConfig(CommandConfig):
    """Two runs side by side: python -m pipelines.compare RUN RUN."""

    one: str = field(default=MISSING, metadata=PATH)
    """A run id, a models:/ URI, a model folder, or a training stage's output folder; `one=` may be left out."""
    other: str = field(default=MISSING, metadata=PATH)
    """The run to compare it with; `other=` may be left out."""
    tolerance: float = 1e-4
    """A difference between two losses, as a share of them, that rounding alone may come to."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "tolerance")


@dataclass
class SyncConfig(CommandConfig):
    """What runs couldn't send to the tracking store (tracking.spool_dir), now."""


@dataclass
class MainConfig(StageConfig):
    """The whole way, prepare to register, as nested runs. A stage's own keys stand under its name."""

    from_scratch: bool = False
    """Pretrain a model of the size `model` and fine-tune that one, rather than models/poems."""
    model: SizeConfig = field(default_factory=SizeConfig)
    """Size to pretrain, with from_scratch."""
    model_name: str = "moyun"
    """Name in the registry."""
    force: Any = field(default_factory=list)
    """Stages to do anew that a run has done before ([finetune, evaluate]; true: all). Without it what was made of the
    same configuration, rows, weights and code is used again, if it is still there and whole."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    pretrain: TrainingConfig = field(default_factory=TrainingConfig)
    finetune: TrainingConfig = field(default_factory=TrainingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)

    @property
    def forced(self) -> frozenset[str]:
        """The stages that `force` names."""
        given = self.force
        if isinstance(given, str):
            given = {"true": True, "false": []}.get(given.strip().lower(), given)
        if isinstance(given, str):  # as the command line has it: [finetune,evaluate], or one alone
            given = [name.strip().strip("'\"") for name in given.strip("[]").split(",") if name.strip()]
        return frozenset(STAGES_OF_MAIN if given is True else given or ())

    @property
    def outputs(self) -> list[str]:
        """Folders that stages of it write to: what lies in them need not be there when it starts."""
        stages = self.prepare, self.pretrain, self.finetune
        return [*(stage.output_dir for stage in stages if stage.output_dir), "prepared"]

    def store_complaints(self) -> Iterator[str]:
        if not self.finetune.tracking.log_model:
            key = "finetune.tracking.log_model" if self.tracking.log_model else "tracking.log_model"
            yield f"{key}=false: evaluate and register read the model from the store; drop it, or run the stages alone"

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        start, length = self.finetune.train.init_from, self.finetune.data.sequence_length
        if self.from_scratch and start != "<start>":
            yield f"finetune.train.init_from={start}: from_scratch=true fine-tunes what it pretrains; drop one of them"
        elif not start:
            yield "finetune.train.init_from must name a model; from_scratch=true makes one"
        if self.from_scratch and length and length > (limit := self.model.max_position_embeddings):
            yield f"finetune.data.sequence_length ({length}) is over model.max_position_embeddings ({limit})"
        unknown = sorted(str(name) for name in self.forced if name not in STAGES_OF_MAIN)
        if unknown:
            yield f"force={','.join(unknown)}: must be true, or some of [{', '.join(STAGES_OF_MAIN)}]"
        for name in STAGES_OF_MAIN:
            if getattr(self, name).dry_run:
                yield f"{name}.dry_run: a stage can't be left out here; give dry_run=true, or run {name} by itself"
        yield from self.store_complaints()
        sources = [source.path for source in self.finetune.data.mix]
        for name in ("evaluate", "register") if sources else ():
            if not getattr(self, name).data.path and not getattr(self, name).data.test_path:
                others = " or ".join(sources)
                yield f"{name}.data.path must be given with finetune.data.mix: one source is scored, {others}"
        for name in ("pretrain", "finetune"):
            trainer = getattr(self, name).trainer
            if trainer.devices * trainer.nodes > 1:
                yield f"{name}.trainer.devices: main runs its stages in one process; run {name} by itself on several"
        if self.prepare.source == JUDGED:
            yield f"prepare.source={JUDGED} makes preferences: run prepare by itself, and then prefer, not main"
        rows, source = (self.finetune.data.path or "").removeprefix("<prepare>/"), self.prepare.source
        made_by = MADE_BY.get(rows, (source,))
        if self.prepare.is_public and source not in made_by:
            yield f"finetune.data={rows}: prepare.source={source} makes no such rows; give prepare.source={made_by[0]}"
        for name in PLACES:
            value = attrgetter(name)(self)
            if value and value.startswith("<") and not MADE_BY_STAGE.fullmatch(value):
                yield f"{name}={value}: must be <prepare>, <start> or <finetune>, a path or a models:/ URI"


STAGES: dict[str, type[CommandConfig]] = {
    "main": MainConfig,
    "prepare": PreparingConfig,
    "pretrain": TrainingConfig,
    "finetune": TrainingConfig,
    "prefer": PreferConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "register": RegisterConfig,
    "generate": GenerateConfig,
    "predict": PredictConfig,
    "serve": ServeConfig,
    "convert": ConvertConfig,
    "compare": CompareConfig,
    "sync": SyncConfig,
}

TRAINING_STAGES = tuple(name for name, section in STAGES.items() if issubclass(section, TrainingConfig))
"""Those that end with a model, and have checkpoints to go on from."""

MADE_BY = {
    "couplets": POEM_DATA,
    "translate": ("classical_modern",),
    **{name: (name,) for name in TASK_DATA},
}
"""Data set, a name in conf/data → the sources of prepare that make its rows."""

STAGES_OF_MAIN = ("prepare", "pretrain", "finetune", "evaluate", "register")

PLACES = (
    "pretrain.data.path", "finetune.data.path", "finetune.train.init_from", "evaluate.model", "evaluate.baseline",
    "evaluate.data.path", "register.model", "register.data.path",
)  # fmt: skip
"""Keys of main that may name what a stage before made."""

WIRED = {place.rpartition(".")[2] for place in PLACES}

MADE_BY_STAGE = re.compile(r"<(prepare|start|finetune)>/?(.*)")
"""In main: what that stage made, or a folder in it; <start>: the model that is fine-tuned."""


OF_ROWS = ("path", "validation_path", "test_path", "prompt_template")
"""What data=NAME says of its rows."""

VERSE = ("quatrains", "poems", "couplets")
"""Sets that prepare makes of POEM_DATA."""

OF_VERSE = ("schedule", "learning_rate", "max_epochs", "max_steps", "validate_every_n_steps")
"""Keys of finetune.train that conf/main.yaml sets."""


def implied_paths(stage: str, leaves: Sequence[Assignment], users: Sequence[Assignment]) -> Iterator[Assignment]:
    """Paths of rows that follow from what is said; those that the user names stand."""
    given = {name for name, value, _ in users if value not in (None, "", "null")}
    # A mixture stands in place of the rows that a stage's file, a task or data=NAME (`mlflow run` always gives one)
    # names, and of how these are to be read: another source's prompts aren't theirs.
    mixed = [name for name, value, _ in users if name in given and value not in ("[]", [])]
    for section in {name.removesuffix(".mix") for name in mixed if re.fullmatch(r"([a-z]+\.)?data\.mix", name)}:
        for key in (key for key in OF_ROWS if f"{section}.{key}" not in given):
            given.add(f"{section}.{key}")
            yield f"{section}.{key}", "null", COMMAND_LINE
    # Where evaluate or register is given test rows alone, the rows that its file names aren't those to train on.
    for prefix in ("",) if stage in ("evaluate", "register") else ("evaluate.", "register."):
        if f"{prefix}data.test_path" in given and not given & {f"{prefix}data", f"{prefix}data.path"}:
            yield f"{prefix}data.path", None, COMMAND_LINE
    # In main a data set by name is the one that prepare makes there.
    sections = {f"{name}.path": value for name, value, _ in leaves if stage == "main" and isinstance(value, str)}
    for path in (path for path in PLACES if path in sections and path not in given):
        is_file = sections[path].endswith((".yaml", ".yml"))
        if found := path_in(sections[path]) if is_file else f"<prepare>/{sections[path]}":
            yield path, found, COMMAND_LINE


def implied_recipe(stage: str, users: Sequence[Assignment]) -> Iterator[Assignment]:
    """What conf/main.yaml says of a short fine-tuning on the bundled verse holds for that alone: other rows get the
    recipe's, but for what the user gives."""
    given = {name: str(value) for name, value, _ in users if value not in (None, "", "null")}
    source, rows = given.get("prepare.source", POEM_DATA[0]), given.get("finetune.data", VERSE[0])
    other_rows = given.get("finetune.data.path", "<prepare>").removeprefix("<prepare>").lstrip("/") not in ("", *VERSE)
    mixed = given.get("finetune.data.mix", "[]") != "[]"
    if stage == "main" and (source not in POEM_DATA or rows not in VERSE or other_rows or mixed):
        named = {name for name, _, _ in users}
        for key in (f"finetune.train.{name}" for name in OF_VERSE):
            if key not in named:
                yield key, None, COMMAND_LINE


def path_in(file: str) -> str | None:
    """What a section's own file says of its path; whoever reads the section says what is wrong with the file."""
    with suppress(OSError, ValueError):
        content = read_plain_yaml(Path(expanded(file)))
        return content.get("path") if isinstance(content, dict) else None
    return None


def wire(config: Any, made: dict[str, str]) -> Any:
    """Puts what earlier stages made in place of <STAGE>; <prepare>/SET is the whole folder where it has no such set."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        for section in filter(is_dataclass, value if isinstance(value, list) else [value]):
            wire(section, made)
        if entry.name in WIRED and isinstance(value, str) and (match := MADE_BY_STAGE.fullmatch(value)):
            inside = Path(made[match[1]], match[2])
            setattr(config, entry.name, str(inside) if match[2] and inside.exists() else made[match[1]])
    return config
