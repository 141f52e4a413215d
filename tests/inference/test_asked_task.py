"""A task that is named decides how a model is asked: by the model's own template for it, else by the task's."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from modules.checkpoint.loading import open_tokenizer
from modules.config.data import AskedTaskConfig, DataConfig
from modules.config.evaluation import TaskConfig
from modules.config.loader import ConfigError, load_config
from modules.evaluation.prompts import template_of
from modules.inference.asked_task import asking
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.generate import generate
from tests.helpers.models import save_model

CONF = Path(__file__).parents[2] / "conf"
TRANSLATE = "{src_txt}\n今译："
TASKS = {"translate": TRANSLATE, "summarization": "{src_txt}\n寓意："}


def named(name: str, *more: str) -> AskedTaskConfig:
    task: AskedTaskConfig = load_config("generate", [f"task={name}", *more]).task
    return task


def test_no_two_tasks_are_asked_alike() -> None:
    found = {
        path.stem: yaml.safe_load(path.read_text("utf-8")).get("prompt_template") for path in CONF.glob("data/*.yaml")
    }
    templates = [template for template in found.values() if template]
    assert len(templates) == len(set(templates)) == 6
    assert found["translate"] == TRANSLATE


def test_a_task_brings_its_template_and_how_its_answers_are_written() -> None:
    config = load_config("generate", ["task=translate", "prompt=学"])
    assert (config.generation.max_new_tokens, config.generation.temperature) == (256, 0)
    assert load_config("generate", ["task=translate", "temperature=0.5"]).generation.temperature == 0.5
    assert load_config("predict", ["task=translate", "source=a.csv"]).generation.temperature == 0
    assert load_config("generate", []).task == AskedTaskConfig()


def test_a_model_without_a_template_is_asked_with_the_tasks(tokenizer: Tokenizer) -> None:
    plain = tokenizer.with_prompt_template(None)
    assert asking(plain, AskedTaskConfig()) is plain
    assert asking(plain, named("translate")).prompt_template == TRANSLATE
    assert asking(plain, named("poetry")).prompt_template is None
    assert asking(plain, named("translate", r"task.template={src_txt}\n译：")).prompt_template == "{src_txt}\n译："


def test_a_model_that_learnt_no_task_is_asked_with_a_warning(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    asking(tokenizer.with_prompt_template(None, TASKS), named("translate"))
    asking(tokenizer.with_prompt_template(None), named("poetry"))
    assert not caplog.messages
    asking(tokenizer.with_prompt_template(None), named("translate"))
    (told,) = caplog.messages
    assert "task=translate: this model wasn't trained to answer" in told


def test_evaluate_asks_by_the_name_of_the_rows_folder_too(tokenizer: Tokenizer) -> None:
    """As a source of data.mix is called that has no other name, and as generate asks."""
    several = tokenizer.with_prompt_template("{src_txt}诗", {"poems": "{src_txt}诗", "classical_modern": TRANSLATE})
    rows = Dataset.from_dict({"src_txt": ["学"], "tgt_txt": ["学习"]})
    task = TaskConfig(name="translate", data="translate")
    assert template_of(rows, several, task, DataConfig(path="elsewhere/classical_modern")) == TRANSLATE
    assert asking(several, named("translate")).prompt_template == TRANSLATE


def test_a_model_that_was_tuned_for_one_task_is_asked_as_it_was_tuned(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = tokenizer.with_prompt_template("{src_txt}\n寓意：")
    with caplog.at_level(logging.WARNING):
        assert asking(tuned, named("summarization")).prompt_template == "{src_txt}\n寓意："
        assert not caplog.records
        assert asking(tuned, named("translate")).prompt_template == "{src_txt}\n寓意："
    assert "task.own_template=false asks it with the task's, '{src_txt}\\n今译：'" in caplog.text
    assert asking(tuned, named("translate", "task.own_template=false")).prompt_template == TRANSLATE


@pytest.mark.parametrize("usual", [None, "问：{src_txt}\n答："])
def test_a_model_of_several_tasks_is_asked_as_each_was_trained(
    tokenizer: Tokenizer, usual: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = tokenizer.with_prompt_template(usual, {**TASKS, "translate": "译：{src_txt}\n"})
    asked = asking(mixed, named("translate"))
    assert asked.prompt_template == "译：{src_txt}\n"
    assert asked.task_templates == mixed.task_templates
    assert asking(mixed, named("summarization")).prompt_template == "{src_txt}\n寓意："
    assert mixed.prompt_template == usual
    by_folder = tokenizer.with_prompt_template(usual, {"classical_modern": "古：{src_txt}"})
    assert asking(by_folder, named("translate")).prompt_template == "古：{src_txt}"
    assert not caplog.records
    rows = Dataset.from_dict({"src_txt": ["甲"], "tgt_txt": ["乙"]})
    task, data = TaskConfig(name="mine", data="translate"), DataConfig(prompt_template="{src_txt}")
    assert template_of(rows, mixed, task, data) == "译：{src_txt}\n"


def test_a_model_folder_keeps_the_templates_of_its_tasks(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer
) -> None:
    mixed = tokenizer.with_prompt_template(None, TASKS)
    folder = save_model(tmp_path / "model", decoder, mixed, {})
    assert open_tokenizer(folder).task_templates == TASKS
    assert open_tokenizer(folder).fingerprint == mixed.fingerprint
    assert mixed.with_prompt_template(None).fingerprint == tokenizer.with_prompt_template(None).fingerprint
    plain = save_model(tmp_path / "plain", decoder, tokenizer, {})
    assert "task_templates" not in json.loads((plain / "tokenizer_config.json").read_text("utf-8"))  # as it was


@pytest.mark.parametrize("found", ['["a"]', '{"translate": "没有"}', '{"translate": 5}', '"译"'])
def test_templates_that_are_none_are_refused_as_the_folder(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, found: str
) -> None:
    file = save_model(tmp_path / "model", decoder, tokenizer, {}) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "task_templates": json.loads(found)}), "utf-8")
    with pytest.raises(ValueError, match="no tokenizer in"):
        open_tokenizer(tmp_path / "model")


def test_generate_writes_the_tasks_answer_alone(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", decoder, tokenizer.with_prompt_template(None, TASKS), {})
    arguments = [f"model={folder}", "prompt=春风", "max_new_tokens=8", "temperature=0"]
    answer = generate(load_config("generate", ["task=translate", *arguments]))
    assert not answer.startswith("春风")
    whole = generate(load_config("generate", [*arguments[:1], "prompt=春风\n今译：", *arguments[2:]]))
    assert whole == f"春风\n今译：{answer}"
    capsys.readouterr()


def test_a_data_set_of_a_task_that_is_not_there_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"task\.data=nowhere"):
        asking(tokenizer, AskedTaskConfig(name="mine", data="nowhere"))
