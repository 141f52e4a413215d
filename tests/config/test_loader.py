"""What wins over what, how values are written, what main hands down, what --help says."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config.commands import STAGES, MainConfig
from modules.config.loader import ConfigError, load_config, load_model_config, to_yaml
from modules.config.model import ModelConfig
from modules.config.prediction import GenerateConfig
from modules.config.schema import keys
from modules.config.training import TrainingConfig
from modules.training.optimizer import SCHEDULES
from pipelines.cli.help import help_text
from tests.config.test_config import NEEDED, complaint_of
from tests.helpers.models import ROOT

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


def test_a_task_brings_its_data_and_its_length_and_what_the_user_says_wins(tmp_path: Path) -> None:
    config = load_config("evaluate", ["task=couplets"])
    assert (config.data.path, config.task.data, config.generation.max_new_tokens) == (None, "couplets", 32)
    assert (config.generation.temperature, config.prompts, config.task.trivial) == (
        0,
        [],
        ["reference", "copy", "nearest"],
    )
    assert config.generation.seed == 7  # the stage's file, where the task's says nothing
    own = load_config("evaluate", ["data.path=my.csv", "generation.max_new_tokens=5", "task=couplets", "task.rows=3"])
    assert (own.data.path, own.generation.max_new_tokens, own.task.rows) == ("my.csv", 5, 3)
    assert load_config("evaluate", ["data=poems", "task=couplets"]).data.path == "prepared/sample/poems"
    (tmp_path / "mine.yaml").write_text("data.path: a.csv\ntask: {metrics: [rouge], examples: 2}\n")
    (tmp_path / "run.yaml").write_text(f"task: {tmp_path / 'mine.yaml'}\ntask.examples: 4\n")
    mine = load_config("evaluate", [f"config={tmp_path / 'run.yaml'}"])
    assert (mine.task.name, mine.task.metrics, mine.task.examples, mine.data.path) == ("mine", ["rouge"], 4, "a.csv")


def test_of_two_tasks_the_last_one_counts_alone() -> None:
    config = load_config("evaluate", ["task=summarization", "task=couplets"])
    assert config == load_config("evaluate", ["task=couplets"])
    inside = load_config("main", ["evaluate.task=couplets"]).evaluate
    assert (inside.task.name, inside.generation.max_new_tokens) == ("couplets", 32)
    assert inside.data.path == "<prepare>/quatrains"  # which conf/main.yaml says leaf by leaf


@pytest.mark.parametrize(
    ("arguments", "path", "template"),
    [
        ([], "<prepare>/quatrains", None),
        (["finetune.data=couplets"], "<prepare>/couplets", "{src_txt}\n"),
        (["finetune.task=couplets"], "<prepare>/couplets", "{src_txt}\n"),
        (["finetune.data.path=mine.csv", "finetune.data=couplets"], "mine.csv", "{src_txt}\n"),
        (["prepare.source=data_to_text", "finetune.task=data_to_text"], "<prepare>/data_to_text", "{src_txt}\n说法："),
        (["prepare.source=mine.csv", "finetune.data=couplets"], "<prepare>/couplets", "{src_txt}\n"),
        (["finetune.data=own.yaml"], "own.csv", "{src_txt}="),
    ],
)  # fmt: skip
def test_a_data_set_by_name_is_in_main_the_one_that_prepare_makes(
    arguments: list[str], path: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("path: own.csv\nprompt_template: '{src_txt}='\n", encoding="utf-8")
    config = load_config("main", arguments)
    assert (config.finetune.data.path, config.finetune.data.prompt_template) == (path, template)
    assert (config.evaluate.data.path, config.register.data.path) == (path, path)
    apart = load_config("main", ["evaluate.data=couplets", "pretrain.data=quatrains", "from_scratch=true"])
    paths = (apart.pretrain.data.path, apart.finetune.data.path, apart.evaluate.data.path)
    assert paths == ("<prepare>/quatrains", "<prepare>/quatrains", "<prepare>/couplets")


@pytest.mark.parametrize(
    ("name", "source", "needed"),
    [("summarization", "sample", "summarization"), ("couplets", "summarization", "sample"),
     ("instructions", "summarization", "instructions")],
)  # fmt: skip
def test_a_data_set_that_prepare_does_not_make_there_is_refused(name: str, source: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"finetune.data={name}: .*{source} makes .* give prepare.source={needed}"):
        load_config("main", [f"finetune.data={name}", f"prepare.source={source}"])


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


@pytest.mark.parametrize("empty", [["train.weight_decay="], ["--train.weight_decay="], ["--train.weight_decay", ""]])
def test_an_empty_value_is_not_given_and_null_unsets(empty: list[str]) -> None:
    folder = "train.init_from=folder"
    assert load_config("finetune", [folder, *empty]).train.weight_decay == 0.01  # conf/finetune.yaml's
    assert load_config("finetune", [folder, "train.max_epochs=null", "train.max_steps=1"]).train.max_epochs is None
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
    assert (config.finetune.train.schedule, config.finetune.train.weight_decay) == (
        "cosine",
        0.01,
    )  # conf/main, conf/finetune
    assert (config.finetune.data.max_rows, config.evaluate.data.max_rows) == (9, None)


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_stage_of_main_is_told_stays_with_it(order: int) -> None:
    arguments = ["pretrain.seed=5", "pretrain.tracking.experiment_name=other", "pretrain.model.num_hidden_layers=1"]
    config = load_config("main", [*arguments, "tracking.tracking_uri=sqlite:///x", "model=base"][::order])
    assert (config.pretrain.seed, config.seed, config.finetune.seed) == (5, 42, 42)
    assert (config.pretrain.tracking.experiment_name, config.pretrain.tracking.tracking_uri) == ("other", "sqlite:///x")
    assert (config.tracking.experiment_name, config.finetune.tracking.experiment_name) == (None, None)
    assert (config.pretrain.model.num_hidden_layers, config.pretrain.model.hidden_size) == (1, 768)
    assert config.model.num_hidden_layers == 12


def test_stages_of_main_share_no_object() -> None:
    config = load_config("main")
    config.pretrain.model.vocab_size = 7  # as training does
    assert config.model.vocab_size is None


# --- what is said about keys ---


@pytest.mark.parametrize(
    "config_class", list(dict.fromkeys([*STAGES.values(), ModelConfig])), ids=lambda config_class: config_class.__name__
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
    assert f"  train.schedule ({' | '.join(SCHEDULES)} or null) = cosine\n" in text
    assert "  train.max_steps (int or null) = null\n" in text
    assert "  data.path (str or null) = prepared/sample/poems\n" in text
    assert f"  model.hidden_size (int) = {load_config('pretrain').model.hidden_size}\n" in text
    assert "model=NAME with NAME one of 1.3b, 13b, 175b, 2.7b, 30b, base, large, mini, tiny, or a YAML file" in text
    assert "  model (str) = (must be given)\n" in help_text("register")
    assert "  pretrain.seed (int) = 42\n" in help_text("main")


# --- there and back ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_resolved_configuration_read_as_a_file_is_the_same(tmp_path: Path, stage: str) -> None:
    config = load_config(stage, [*NEEDED.get(stage, []), "tracking.experiment_name=other"])
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
    assert plain(dataclasses.asdict(config))
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
    assert importing == {Path("modules/config/loader.py")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["logit_bias={5: -100, 6: 1.5}"],
        ["logit_bias.5=-100", "generation.logit_bias.6=1.5"],
        ["--logit_bias", "{5: -100, 6: 1.5}"],
    ],
)
def test_token_ids_are_the_keys_of_a_bias(arguments: list[str], tmp_path: Path) -> None:
    expected = {"5": -100.0, "6": 1.5}
    assert load_config("generate", arguments).generation.logit_bias == expected
    (tmp_path / "own.yaml").write_text("generation:\n  logit_bias: {5: -100, 6: 1.5}\n")
    assert load_config("generate", [f"config={tmp_path / 'own.yaml'}"]).generation.logit_bias == expected


@pytest.mark.parametrize(
    "value", ["{a: 1}", "{5: x}", "{-5: 1}", "{5.5: 1}", "{05: 1}", "[5]", "5", "null", "{5: 101}", "{5: nan}"]
)
def test_what_is_no_bias_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"generation\.logit_bias.* must (be|map)"):
        load_config("generate", [f"logit_bias={value}"])
