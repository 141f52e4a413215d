"""What each key of the configuration changes: one table for resuming, comparing and reusing runs.

A key that is in no row counts as one that changes results, and tests/config/test_key_effects.py fails until it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache

from ..base import CommandConfig, StageConfig
from ..commands import CompareConfig, ConvertConfig, MainConfig, VocabularyConfig
from ..data import AskedTaskConfig, DataConfig, PrepareConfig, TokenizerConfig
from ..evaluation import EvaluateConfig, RegisterConfig, ScoringConfig, TaskConfig
from ..generation import GenerationConfig, LimitsConfig, ServeConfig
from ..mixing.mixture_sources import SourceConfig
from ..model import LoraConfig, ModelConfig, SizeConfig
from ..prediction import GenerateConfig, PredictConfig
from ..preferences.judging import PreparingConfig
from ..preferences.preference import PreferenceConfig
from ..schema import keys
from ..sweeps.command import SweepConfig
from ..training import TrainConfig, TrainerConfig, TrainingConfig


class Effect(Enum):
    RESULT = "what is learnt, scored or written"
    RECORD = "what a run keeps and shows of it, or how a machine gets there: no more than the order of additions"
    CONTENT = "where to look: what was found there counts, and runs record its fingerprint"
    NOTHING = "no number: where things go, and what happens meanwhile"


TABLE: dict[type, dict[Effect, str]] = {
    CommandConfig: {Effect.NOTHING: "tracking"},
    StageConfig: {Effect.RESULT: "seed", Effect.NOTHING: "dry_run"},
    TrainingConfig: {Effect.RECORD: "generation task recipe", Effect.NOTHING: "output_dir"},
    PreferenceConfig: {Effect.RESULT: "loss beta"},
    TrainConfig: {
        Effect.RESULT: "batch_size batch_tokens max_epochs max_steps learning_rate optimizer schedule warmup_steps "
        "min_learning_rate_ratio decay_fraction weight_decay beta1 beta2 epsilon gradient_clip_val "
        "validate_every_n_steps early_stopping_patience select_by",
        Effect.RECORD: "micro_batch_tokens save_every_n_steps save_top_k on_nonfinite log_every_n_steps sample_prompts",
        Effect.CONTENT: "init_from",
        Effect.NOTHING: "resume_from allow_changed",
    },
    TrainerConfig: {
        Effect.RESULT: "precision",
        Effect.RECORD: "accelerator compile deterministic devices nodes strategy tensor_parallel "
        "activation_checkpointing device_memory",
        Effect.NOTHING: "process_group_timeout progress_bar",
    },
    DataConfig: {
        Effect.RESULT: "mix mix_temperature validation_fraction max_rows bad_rows max_bad_rows sequence_length "
        "over_long prompt_template",
        Effect.CONTENT: "path columns validation_path test_path",
        Effect.NOTHING: "cache_dir",
    },
    SourceConfig: {
        Effect.RESULT: "weight prompt_template max_rows",
        Effect.CONTENT: "path columns validation_path test_path",
        Effect.RECORD: "name",
    },
    TokenizerConfig: {Effect.RESULT: "kind vocab_size min_frequency", Effect.CONTENT: "path"},
    ModelConfig: {
        Effect.RESULT: "vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings "
        "hidden_act layer_norm_eps initializer_range hidden_dropout_prob attention_probs_dropout_prob",
    },
    SizeConfig: {Effect.RESULT: "learning_rate batch_tokens"},
    LoraConfig: {Effect.RESULT: "rank alpha dropout target_modules"},
    GenerationConfig: {
        Effect.RESULT: "max_new_tokens temperature top_k top_p min_p repetition_penalty presence_penalty "
        "frequency_penalty logit_bias seed stop num_beams "
        "length_penalty form tones json_schema regex"
    },
    PrepareConfig: {
        Effect.RESULT: "source archive columns join experiment take validation_fraction test_fraction near_copies "
        "bad_rows max_bad_rows",
        Effect.NOTHING: "seed output_dir",  # a row's split follows from its text alone
    },
    PreparingConfig: {Effect.RESULT: "model prompts answers judge dtype seed"},
    AskedTaskConfig: {Effect.RESULT: "name data template own_template"},
    TaskConfig: {Effect.RESULT: "metrics trivial examples separator rows tokenize"},
    ScoringConfig: {Effect.RESULT: "ngram_floor", Effect.RECORD: "max_batch_tokens"},
    EvaluateConfig: {Effect.RESULT: "model baseline champion dtype prompts", Effect.RECORD: "card"},
    RegisterConfig: {Effect.RESULT: "model model_name measure guard alias level"},
    SweepConfig: {
        Effect.RESULT: "sweep stage space metric direction method pruner trials tokens minutes confirm_seeds given",
        Effect.RECORD: "workers keep_models",
        Effect.NOTHING: "output_dir",
    },
    MainConfig: {Effect.RESULT: "from_scratch model_name", Effect.NOTHING: "force"},
    GenerateConfig: {Effect.RESULT: "model prompt dtype"},
    PredictConfig: {
        Effect.RESULT: "split columns column stopped_column error_column return_full_text dtype",
        Effect.RECORD: "max_batch_tokens log_file",
        Effect.CONTENT: "model source task",  # of the task the prompt template, which is the tokenizer's then
        Effect.NOTHING: "seed target force",  # what the seed draws is drawn by generation.seed
    },
    ServeConfig: {
        Effect.RESULT: "model dtype",
        Effect.NOTHING: "name host allowed_hosts port traces follow_seconds limits",
    },
    LimitsConfig: {
        Effect.NOTHING: "batch_rows queue_rows request_rows body_bytes prompt_tokens prefix_tokens max_new_tokens "
        "request_seconds drain_seconds",
    },
    ConvertConfig: {
        Effect.RESULT: "source adapter prompt_template format tensor_parallel dtype",
        Effect.NOTHING: "target",
    },
    VocabularyConfig: {Effect.RESULT: "new_tokens min_frequency", Effect.CONTENT: "path"},
    CompareConfig: {Effect.RESULT: "one other tolerance"},
}
"""Class → effect → its fields. What is said of a section holds for all in it; a subclass's word is the last."""


@cache
def effects(config_class: type) -> dict[str, Effect]:
    """Dotted key → effect, of each key that the table names, and of those below a section that it names."""
    found: dict[str, Effect] = {}
    owners = {"": config_class}
    for key in keys(config_class):
        above, _, name = key.name.rpartition(".")
        if key.section:
            owners[key.name] = key.section
        if effect := found.get(above) or own_effects(owners[above]).get(name):
            found[key.name] = effect
        if key.type == list[SourceConfig]:
            found |= {f"{key.name}.{field}": effect for field, effect in own_effects(SourceConfig).items()}
    return found


@cache
def own_effects(section: type) -> dict[str, Effect]:
    """Field → effect, of a class's own fields and those that it inherits."""
    named: dict[str, Effect] = {}
    for parent in reversed(section.__mro__):
        for effect, names in TABLE.get(parent, {}).items():
            named |= dict.fromkeys(names.split(), effect)
    return named


def effect_of(config_class: type) -> Callable[[str], Effect]:
    """Looks a dotted key up; one in a mapping (data.columns.NAME) has the mapping's, an unknown one changes results."""
    found = effects(config_class)

    def look_up(key: str) -> Effect:
        key = ".".join(part for part in key.split(".") if not part.isdigit())  # data.mix.0.path
        while key not in found and "." in key:
            key = key.rpartition(".")[0]
        return found.get(key, Effect.RESULT)

    return look_up
