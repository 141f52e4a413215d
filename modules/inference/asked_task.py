"""How a model is asked for a task that is named: task=translate."""

from __future__ import annotations

import logging
from pathlib import Path

from ..config.data import AskedTaskConfig, DataConfig
from ..config.loader import ConfigError, load_config
from ..tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("moyun.generation")


def asking(tokenizer: Tokenizer, task: AskedTaskConfig) -> Tokenizer:
    """The tokenizer that asks as evaluate does: with the model's own template where it was tuned with one, of several
    the task's; else with the task's or its data set's. ConfigError for a data set that isn't there."""
    if task == AskedTaskConfig():
        return tokenizer
    data = data_set(task.data)
    names, usual = (task.name, task.data, Path(data.path or "").name), task.template or data.prompt_template
    own = tokenizer.template_for(names) if task.own_template else None
    if own and usual and own != usual and tokenizer.task_templates.keys().isdisjoint(names):
        logger.warning(
            "task=%s: this model was tuned with the prompt template %r and is asked with it; task.own_template=false "
            "asks it with the task's, %r",
            task.name,
            own,
            usual,
        )
    if task.own_template and usual and not own:
        logger.warning(
            "task=%s: this model wasn't trained to answer by a prompt template, and is asked with the task's, %r; "
            "what it writes may be no answer (models/chinese was trained on these tasks)",
            task.name,
            usual,
        )
    return tokenizer.with_prompt_template(own or usual, tokenizer.task_templates)


def data_set(name: str | None) -> DataConfig:
    """A name in conf/data; an empty section without one."""
    if not name:
        return DataConfig()
    try:
        found: DataConfig = load_config("evaluate", [f"data={name}"]).data
    except ConfigError as error:
        raise ConfigError([f"task.{complaint}" for complaint in error.complaints]) from None
    return found
