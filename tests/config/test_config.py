"""Every file of conf/ loads; every wrong key, value or combination is named, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import benchmarks.config  # noqa: F401  (adds its command to STAGES)
from modules.config.commands import STAGES
from modules.config.loader import ConfigError, load_config
from tests.helpers.models import ROOT

CONF = ROOT / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
NEEDED = {
    "register": ["model=folder"],
    "finetune": ["train.init_from=folder"],
    "prefer": ["train.init_from=folder"],
    "convert": ["source=a", "target=b"],
    "predict": ["source=a.csv"],
    "compare": ["one=a", "other=b"],
}
"""What a stage must be given."""

# (layers, heads, width, learning rate, tokens a step): the table in ModelScope's model cards (docs/recipes.md).
SIZES = {
    "base": (12, 12, 768, 6e-4, 500_000),
    "large": (24, 16, 1024, 3e-4, 500_000),
    "1.3b": (24, 32, 2048, 2e-4, 2_000_000),
    "2.7b": (32, 32, 2560, 1.6e-4, 2_000_000),
    "13b": (40, 40, 5120, 1e-4, 6_000_000),
    "30b": (48, 56, 7168, 1e-4, 6_000_000),
    "175b": (96, 96, 12288, 1.2e-4, 6_000_000),
}


def complaints_of(stage: str, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(stage, arguments)
    assert all(complaint in str(caught.value) for complaint in caught.value.complaints)
    return caught.value.complaints


def complaint_of(stage: str, *arguments: str) -> str:
    (complaint,) = complaints_of(stage, *arguments)
    return complaint


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_loads(file: Path) -> None:
    if file.parent == Path():
        assert isinstance(load_config(file.stem, NEEDED.get(file.stem, [])), STAGES[file.stem])
    else:
        group = str(file.parent)
        if group == "task":
            config = load_config("evaluate", [f"task={file.stem}"])
            assert config.task.name == file.stem
            assert config == load_config("evaluate", [f"task={CONF / file}"])
            return
        if group == "chinese":
            assert load_config("finetune", [f"config={CONF / file}"]).data.mix
            return
        if group == "sweep":
            by_name, by_path = (
                load_config("sweep", [f"sweep={file.stem}"]),
                load_config("sweep", [f"config={CONF / file}"]),
            )
            assert (by_name.space, by_name.given) == (by_path.space, by_path.given)
            assert by_name.space
            return
        if group == "recipe":
            config = load_config("finetune", ["train.init_from=folder", f"config={CONF / file}"])
            assert None not in (config.data.sequence_length, config.train.learning_rate, config.train.max_epochs)
            return
        assert group in ("model", "data")
        config = load_config("pretrain", [f"{group}={file.stem}", "data.sequence_length=8"])
        by_path = load_config("pretrain", [f"{group}={CONF / file}", "data.sequence_length=8"])
        assert at(config, group) == at(by_path, group)


def test_every_stage_has_a_file_and_no_file_is_without_a_stage() -> None:
    assert {file.stem for file in FILES if file.parent == Path()} == set(STAGES)


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_those_of_the_gpt3_table(name: str) -> None:
    model = load_config("pretrain", [f"model={name}"]).model
    found = (model.num_hidden_layers, model.num_attention_heads, model.hidden_size, model.learning_rate)
    assert (*found, model.batch_tokens) == SIZES[name]
    assert (model.max_position_embeddings, model.vocab_size, model.hidden_act) == (2048, None, "gelu")


# --- complaints ---


def test_all_complaints_come_at_once_each_with_key_value_place_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  lerning_rate: 1.0\ndry_run: perhaps\n")
    found = complaints_of("pretrain", f"config={file}", "modle=base", "data.sequence_length=1.5", "data=poem", "oops")
    assert found == [
        "'oops' isn't understood: write key=value (see --help)",
        "data=poem (command line): no such file or name; must be one of couplets, data_to_text, "
        "instructions, poems, quatrains, question_generation, summarization, translate, or a YAML file's "
        "path; did you mean poems?",
        "train.lerning_rate (mine.yaml): no such key; did you mean train.learning_rate?",
        "dry_run=perhaps (mine.yaml): must be bool",
        "modle (command line): no such key; did you mean model?",
        "data.sequence_length=1.5 (command line): must be int or null",
    ]


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("train.schedule=linear", "must be noam | cosine | constant"),
        ("train.beta1=high", "must be float"),
        ("train.max_steps=1e3", "must be int or null"),
        ("seed=null", "must be int"),
        ("seed=true", "must be int"),
        ("train.sample_prompts=春", "must be list[str] or null, e.g. [a, b]"),
        ("train.sample_prompts=[", "must be list[str] or null, e.g. [a, b]"),
        ("data.columns=src", "must be dict[str, str], e.g. {a: b}"),
        ("train=fast", "train is a section: set its keys, train.KEY=VALUE (see --help)"),
        ("tracking=null", "tracking is a section"),
        ("data=null", "must be one of couplets, data_to_text, instructions, poems, quatrains"),
        ("model=nowhere.yaml", "no such file or name; must be one of 1.3b, 13b"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(argument: str, remedy: str) -> None:
    complaint = complaint_of("pretrain", argument)
    assert complaint.startswith(f"{argument} (command line): ")
    assert remedy in complaint


@pytest.mark.parametrize("argument", ["seed.x=1", "train.sample_prompts.0=x", "-seed=1", "config.x=1"])
def test_only_mappings_take_keys_of_the_users_own(argument: str) -> None:
    assert "no such key" in complaint_of("pretrain", argument)


@pytest.mark.parametrize(
    ("stage", "arguments", "complaint"),
    [
        ("register", [], "model must be given"),
        ("finetune", [], "train.init_from (a model folder or models:/ URI) or model (a size, for fresh weights) must"),
        ("finetune", ["train.init_from=f", "model=base"], "model and train.init_from (f) exclude each other"),
        ("finetune", ["model.hidden_size=64"], "model.hidden_size=64 (command line): model is unset; give model=NAME"),
        (
            "finetune",
            ["model=tiny", "train.batch_size=16", "train.batch_tokens=9"],
            "train.batch_size=16 and batch_tokens=9 exclude",
        ),
        ("pretrain", ["model.hidden_size=250"], "model.hidden_size (250) must be divisible by num_attention_heads (4)"),
        ("pretrain", ["model.num_attention_heads=0"], "model.num_attention_heads (0) must be at least 1"),
        ("pretrain", ["data.sequence_length=257"], "data.sequence_length (257) is over model.max_position_embeddings"),
        ("pretrain", ["train.max_steps=-5"], "train.max_steps (-5) must be at least 1"),
        ("pretrain", ["train.batch_size=0"], "train.batch_size (0) must be at least 1"),
        ("pretrain", ["train.learning_rate=nan"], "train.learning_rate (nan) must be a positive number"),
        ("pretrain", ["train.beta2=1"], "train.beta2 (1.0) must be at least 0 and below 1"),
        ("pretrain", ["train.weight_decay=-1"], "train.weight_decay (-1.0) must be at least 0"),
        ("pretrain", ["tokenizer.vocab_size=257"], "tokenizer.vocab_size (257) must be at least 258"),
        ("pretrain", ["data.prompt_template=Q:"], "data.prompt_template ('Q:') must hold \"{src_txt}\" exactly once"),
        ("pretrain", ["seed=-1"], "seed (-1) must be from 0 to 2^32-1"),
        ("generate", ["generation.top_p=0"], "generation.top_p (0.0) must be above 0 and at most 1"),
        ("generate", ["generation.temperature=nan"], "generation.temperature (nan) must be 0 (greedy) or"),
        (
            "prepare",
            ["source=my.csv", "test_fraction=0.99"],
            "validation_fraction (0.02) and test_fraction (0.99) must leave rows",
        ),
        ("prepare", ["source=my.csv", "test_fraction=-0.1"], "test_fraction (-0.1) must be at least 0"),
        ("convert", ["source=a", "target=b", "tensor_parallel=2"], "tensor_parallel=2 needs format=megatron"),
        ("convert", ["source=a", "target=b", "tensor_parallel=0"], "tensor_parallel (0) must be at least 1"),
        ("evaluate", ["max_batch_tokens=0"], "max_batch_tokens (0) must be at least 1"),
        ("evaluate", ["task=sumarization"], "task=sumarization (command line): no such file or name; must be one of"),
        ("evaluate", ["task=null"], "task=null (command line): no such file or name; must be one of"),
        (
            "evaluate",
            ["task.metrics=[rogue]"],
            "task.metrics holds rogue, which isn't one of perplexity, choices, rouge",
        ),
        ("evaluate", ["task.trivial=[best]"], "task.trivial holds best, which isn't one of reference, lead"),
        ("evaluate", ["task.template=Q:"], "task.template ('Q:') must hold \"{src_txt}\" exactly once"),
        ("evaluate", ["task.metrics=[]"], "task.metrics must name at least one"),
        # Known before pretraining starts, not when it is over.
        (
            "main",
            ["finetune.data.sequence_length=300", "from_scratch=true"],
            "finetune.data.sequence_length (300) is over model.max_position",
        ),
        ("main", ["pretrain.train.max_steps=0"], "pretrain.train.max_steps (0) must be at least 1"),
        (
            "main",
            ["finetune.train.init_from=models:/moyun@champion", "from_scratch=true"],
            "finetune.train.init_from=models:/moyun@champion: from_scratch=true fine-tunes what it pretrains; drop one",
        ),
        (
            "main",
            ["finetune.train.init_from=null", "finetune.model=tiny"],
            "finetune.train.init_from must name a model; from_scratch=true makes one",
        ),
        ("main", ["tracking.log_model=false"], "tracking.log_model=false: evaluate and register read the model from"),
        (
            "main",
            ["finetune.tracking.log_model=false"],
            "finetune.tracking.log_model=false: evaluate and register read",
        ),
    ],
)
def test_impossible_values_and_combinations_are_refused(stage: str, arguments: list[str], complaint: str) -> None:
    assert complaint_of(stage, *arguments).startswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- a\n", "must hold `key: value` lines"),
        ("seed: [\n", "isn't YAML"),
        ("seed: 1\nseed: 2\n", "duplicate key seed"),
        ("seed: ${sed}\n", "seed: Interpolation key 'sed' not found"),
        ("1: 2\n", "1 (mine.yaml): no such key"),
        ("seed: true\n", "seed=True (mine.yaml): must be int"),
        # YAML would make 7 and False of these, silently.
        ("data.path: 007\n", "data.path=7 (mine.yaml): must be text; put it in quotes"),
        ("train.sample_prompts: [no]\n", "train.sample_prompts=[False] (mine.yaml): must be text; put it in quotes"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert complaint in complaint_of("pretrain", f"config={tmp_path / 'mine.yaml'}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert complaint_of("pretrain", f"config={tmp_path}/no.yaml") == f"config file {tmp_path}/no.yaml doesn't exist"


def test_a_stage_that_is_not_there_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError, match="pretrian"):
        load_config("pretrian")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["source=summarisation"],
            "source=summarisation: there is no such file or folder; did you mean summarization?",
        ),
        (["source=question_generation"], "source=question_generation needs archive=FILE"),
        (["archive=mine.tgz"], "archive=mine.tgz goes with source=full or a task's (summarization, "),
    ],
)
def test_sources_of_prepare_are_checked_before_any_work(arguments: list[str], complaint: str) -> None:
    assert complaints_of("prepare", *arguments)[0].startswith(complaint)
