from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config import (
    STAGES,
    ConfigError,
    GenerateConfig,
    MainConfig,
    ModelConfig,
    TrainingConfig,
    help_text,
    load_config,
    load_model_config,
    to_dict,
    to_yaml,
)
from modules.config.schema import keys

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
NEEDED = {"register": ["model=folder"], "finetune": ["train.init_from=folder"]}
"""What a stage must be given."""

# (layers, heads, width, learning rate, tokens a step): Brown et al. 2020, Table 2.1; 30b is ModelScope's own.
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
        "data=poem (command line): no such file or name; must be one of couplets, poems, quatrains, or a YAML file's "
        "path; did you mean poems?",
        "train.lerning_rate (mine.yaml): no such key; did you mean train.learning_rate?",
        "dry_run=perhaps (mine.yaml): must be bool",
        "modle (command line): no such key; did you mean model?",
        "data.sequence_length=1.5 (command line): must be int",
    ]


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("train.schedule=linear", "must be noam | cosine | constant"),
        ("train.beta1=high", "must be float"),
        ("train.max_steps=1e3", "must be int or null"),
        ("seed=null", "must be int"),
        ("seed=true", "must be int"),
        ("train.sample_prompts=春", "must be list[str], e.g. [a, b]"),
        ("train.sample_prompts=[", "must be list[str], e.g. [a, b]"),
        ("data.columns=src", "must be dict[str, str], e.g. {a: b}"),
        ("train=fast", "train is a section: set its keys, train.KEY=VALUE (see --help)"),
        ("tracking=null", "tracking is a section"),
        ("data=null", "must be one of couplets, poems, quatrains"),
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
        ("finetune", ["model=tiny", "train.batch_tokens=9"], "train.batch_size=16 and batch_tokens=9 exclude"),
        ("pretrain", ["train.max_epochs=null"], "train.max_epochs or max_steps must be given"),
        ("pretrain", ["model.hidden_size=250"], "model.hidden_size (250) must be divisible by num_attention_heads (4)"),
        ("pretrain", ["model.num_attention_heads=0"], "model.num_attention_heads (0) must be at least 1"),
        ("pretrain", ["data.sequence_length=257"], "data.sequence_length (257) is over model.max_position_embeddings"),
        ("pretrain", ["train.max_steps=-5"], "train.max_steps (-5) must be at least 1"),
        ("pretrain", ["train.batch_size=0"], "train.batch_size (0) must be at least 1"),
        ("pretrain", ["train.learning_rate=nan"], "train.learning_rate (nan) must be a positive number"),
        ("pretrain", ["train.beta2=1"], "train.beta2 (1.0) must be at least 0 and below 1"),
        ("pretrain", ["train.weight_decay=-1"], "train.weight_decay (-1.0) must be at least 0"),
        ("pretrain", ["trainer.devices=0"], "trainer.devices (0) must be at least 1"),
        ("pretrain", ["tokenizer.vocab_size=257"], "tokenizer.vocab_size (257) must be at least 258"),
        ("pretrain", ["data.prompt_template=Q:"], "data.prompt_template ('Q:') must hold \"{src_txt}\" exactly once"),
        ("pretrain", ["seed=-1"], "seed (-1) must be from 0 to 2^32-1"),
        ("generate", ["generation.top_p=0"], "generation.top_p (0.0) must be above 0 and at most 1"),
        ("generate", ["generation.temperature=nan"], "generation.temperature (nan) must be 0 (greedy) or"),
        ("prepare", ["test_fraction=0.99"], "validation_fraction (0.02) and test_fraction (0.99) must leave rows"),
        ("prepare", ["test_fraction=-0.1"], "test_fraction (-0.1) must be at least 0"),
        ("evaluate", ["max_batch_tokens=0"], "max_batch_tokens (0) must be at least 1"),
        # Known before pretraining starts, not when it is over.
        (
            "main",
            ["finetune.data.sequence_length=300"],
            "finetune.data.sequence_length (300) is over model.max_position",
        ),
        ("main", ["pretrain.train.max_steps=0"], "pretrain.train.max_steps (0) must be at least 1"),
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


# --- precedence ---


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    size = tmp_path / "mine.yaml"
    size.write_text(
        "{num_hidden_layers: 2, num_attention_heads: 2, hidden_size: 8, learning_rate: 0.5, batch_tokens: 64,"
        " max_position_embeddings: 512}"
    )
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {size}\nmodel.hidden_size: 12\ntrain: {{warmup_steps: 7, max_epochs: 5}}\n")
    config = load_config("pretrain", [f"config={file}", "train.max_epochs=6", "train.max_epochs=4"])
    assert config.model.layer_norm_eps == 1e-5  # the dataclass
    assert config.model.num_hidden_layers == 2  # the group
    assert config.data.over_long == "split"  # the stage's file, over the group and the default "cut"
    assert config.train.warmup_steps == 7  # the user's file, over the stage's 100
    assert config.model.hidden_size == 12  # a leaf in the same file as its group
    assert config.train.max_epochs == 4  # the command line, the last one said


def test_the_command_line_wins_over_a_file_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain.warmup_steps: 1\n")
    (tmp_path / "b.yaml").write_text("seed: 2\ntrain.warmup_steps: 2\n")
    config = load_config("pretrain", ["seed=3", f"config={tmp_path}/a.yaml", f"config={tmp_path}/b.yaml"])
    assert (config.seed, config.train.warmup_steps) == (3, 2)


def test_a_leaf_survives_a_later_change_of_group() -> None:
    config = load_config("pretrain", ["model.num_hidden_layers=3", "model=large", "data=quatrains"])
    assert (config.model.num_hidden_layers, config.model.hidden_size) == (3, 1024)
    # conf/pretrain.yaml says data.sequence_length
    assert (config.data.path, config.data.sequence_length) == ("prepared/sample/quatrains", 256)


def test_a_group_leaves_nothing_of_the_one_before() -> None:
    config = load_config("pretrain", ["model=base"])
    assert config.model.max_position_embeddings == 2048  # tiny's, which conf/pretrain.yaml names, is 256


# --- what can be written ---


@pytest.mark.parametrize(
    "arguments",
    [["train.max_steps=5", "seed=7"], ["--train.max_steps=5", "--seed=7"], ["--train.max_steps", "5", "--seed", "7"]],
)
def test_three_ways_to_write_a_key(arguments: list[str]) -> None:
    config = load_config("pretrain", arguments)
    assert (config.train.max_steps, config.seed) == (5, 7)


@pytest.mark.parametrize("arguments", [["--seed"], ["--seed", "--dry_run=true"], ["=3"], ["seed"]])
def test_a_key_without_a_value_and_a_value_without_a_key_are_refused(arguments: list[str]) -> None:
    assert f"{arguments[0]!r} isn't understood: write key=value" in complaint_of("pretrain", *arguments)


@pytest.mark.parametrize("empty", [["train.learning_rate="], ["--train.learning_rate="], ["--train.learning_rate", ""]])
def test_an_empty_value_is_not_given_and_null_unsets(empty: list[str]) -> None:
    folder = "train.init_from=folder"
    assert load_config("finetune", [folder, *empty]).train.learning_rate == 3e-4  # conf/finetune.yaml's
    assert load_config("finetune", [folder, "train.learning_rate=null"]).train.learning_rate is None
    assert load_config("finetune", [folder, "model=null", "seed="]).model is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[春,秋]", ["春", "秋"]),
        ("[]", []),
        ('[007, null, 1e3, true, "a, b", "${seed}"]', ["007", "null", "1e3", "true", "a, b", "${seed}"]),
    ],
)
def test_lists_are_yaml_whose_items_are_text(text: str, values: list[str]) -> None:
    assert load_config("pretrain", [f"train.sample_prompts={text}"]).train.sample_prompts == values


@pytest.mark.parametrize("name", ["text1", "文", "a.b", "a[0]", "007", "src txt"])
def test_a_column_may_have_any_name(name: str) -> None:
    assert load_config("pretrain", [f"data.columns.{name}=src_txt"]).data.columns == {name: "src_txt"}
    assert load_config("pretrain", [f'data.columns={{"{name}": src_txt}}']).data.columns == {name: "src_txt"}


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1) | st.sampled_from(["007", "null", "[a]", "1e3", "true", "~", "${seed}", "\\${x}", "a: b"]))
def test_text_stays_text(text: str) -> None:
    if text != "???":  # OmegaConf's mark of a missing value
        assert load_config("generate", [f"prompt={text}"]).prompt == text


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="\\${}a.:", min_size=1))
def test_text_that_looks_like_an_interpolation_stays_text(text: str) -> None:
    config = load_config("pretrain", [f"data.path={text}"])
    assert config.data.path == text


@given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1e3), st.booleans())
@settings(max_examples=15, deadline=None)
def test_numbers_are_read_exactly(seed: int, rate: float, flag: bool) -> None:
    config = load_config("pretrain", [f"seed={seed}", f"train.learning_rate={rate!r}", f"dry_run={flag}"])
    assert (config.seed, config.train.learning_rate, config.dry_run) == (seed, rate, flag)


# --- main ---


def test_what_main_is_told_goes_down_to_its_stages() -> None:
    arguments = ["seed=7", "model=base", "model.hidden_size=24", "model_name=mine", "tracking.tracking_uri=sqlite:///x"]
    config = load_config("main", arguments)
    stages = [config.prepare, config.pretrain, config.finetune, config.evaluate, config.register]
    assert [stage.seed for stage in stages] == [7] * 5
    assert [stage.tracking for stage in stages] == [config.tracking] * 5
    assert config.tracking.tracking_uri == "sqlite:///x"
    assert config.pretrain.model == config.model
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (24, 12)
    assert (config.finetune.model, config.register.model_name) == (None, "mine")


def test_a_stage_of_main_keeps_its_own_file_and_what_main_says_of_it() -> None:
    config = load_config("main", ["pretrain.train.max_steps=3", "finetune.data.max_rows=9"])
    assert (config.pretrain.train.max_steps, config.pretrain.train.max_epochs) == (3, None)  # conf/main.yaml
    assert (config.finetune.train.schedule, config.finetune.train.batch_size) == ("noam", 16)  # conf/finetune.yaml
    assert (config.finetune.data.max_rows, config.evaluate.data.max_rows) == (9, None)


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_stage_of_main_is_told_stays_with_it(order: int) -> None:
    arguments = ["pretrain.seed=5", "pretrain.tracking.experiment_name=other", "pretrain.model.num_hidden_layers=1"]
    config = load_config("main", [*arguments, "tracking.tracking_uri=sqlite:///x", "model=base"][::order])
    assert (config.pretrain.seed, config.seed, config.finetune.seed) == (5, 42, 42)
    assert (config.pretrain.tracking.experiment_name, config.pretrain.tracking.tracking_uri) == ("other", "sqlite:///x")
    assert (config.tracking.experiment_name, config.finetune.tracking.experiment_name) == ("moyun", "moyun")
    assert (config.pretrain.model.num_hidden_layers, config.pretrain.model.hidden_size) == (1, 768)
    assert config.model.num_hidden_layers == 12


def test_stages_of_main_share_no_object() -> None:
    config = load_config("main")
    config.pretrain.model.vocab_size = 7  # as training does
    assert config.model.vocab_size is None


# --- what is said about keys ---


@pytest.mark.parametrize(
    "config_class", {*STAGES.values(), ModelConfig}, ids=lambda config_class: config_class.__name__
)
def test_every_key_has_a_docstring(config_class: type) -> None:
    assert [key.name for key in keys(config_class) if not key.section and not key.doc] == []
    assert [key.name for key in keys(config_class) if key.section and not key.section.__doc__] == []


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_every_key_with_type_value_and_meaning(stage: str) -> None:
    lines = help_text(stage).splitlines()
    for key in keys(STAGES[stage]):
        if key.section:
            assert any(line.startswith(f"{key.name}: ") for line in lines), key.name
        else:
            position = next(i for i, line in enumerate(lines) if line.startswith(f"  {key.name} ("))
            assert "\n".join(lines[position + 1 :]).strip().startswith(key.doc)


def test_help_shows_what_would_be_used() -> None:
    text = help_text("pretrain")
    assert "  train.schedule (noam | cosine | constant) = cosine\n" in text
    assert "  train.max_steps (int or null) = null\n" in text
    assert "  data.path (str or null) = prepared/sample/poems\n" in text
    assert f"  model.hidden_size (int) = {load_config('pretrain').model.hidden_size}\n" in text
    assert "model=NAME with NAME one of 1.3b, 13b, 175b, 2.7b, 30b, base, large, tiny, or a YAML file" in text
    assert "  model (str) = (must be given)\n" in help_text("register")
    assert "  pretrain.seed (int) = 42\n" in help_text("main")


# --- there and back ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_resolved_configuration_read_as_a_file_is_the_same(tmp_path: Path, stage: str) -> None:
    config = load_config(stage, [*NEEDED.get(stage, []), "seed=9"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(stage, [f"config={tmp_path / 'resolved.yaml'}"]) == config


def test_only_dataclasses_and_plain_values_travel() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return type(value) is dict and all(map(plain, value.values()))
        return type(value) in (int, float, str, bool, type(None)) or (type(value) is list and all(map(plain, value)))

    config = load_config("main")
    assert type(config) is MainConfig
    assert type(config.pretrain) is TrainingConfig
    assert plain(to_dict(config))
    assert type(load_config("generate")) is GenerateConfig


def test_a_models_architecture_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    config = ModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    path.write_text(to_yaml(config))
    assert load_model_config(path) == config
    path.write_text("hidden_size: 8\nnum_layers: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_model_config(path)
    assert caught.value.complaints == [f"{path}: num_layers (model.yaml): no such key; did you mean num_hidden_layers?"]
    path.write_text("hidden_size: 8\n")
    with pytest.raises(ConfigError) as caught:
        load_model_config(path)
    missing = [f"{path}: {name} must be given" for name in ("num_attention_heads", "num_hidden_layers")]
    assert caught.value.complaints == missing
    path.write_text(to_yaml(dataclasses.replace(config, hidden_size=9)))
    with pytest.raises(ConfigError, match=r"hidden_size \(9\) must be divisible"):
        load_model_config(path)


def test_only_loading_imports_omegaconf() -> None:
    importing = set()
    for path in [*ROOT.glob("modules/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importing |= {path.relative_to(ROOT)} if any(n.split(".")[0] == "omegaconf" for n in names) else set()
    assert importing == {Path("modules/config/loading.py")}
