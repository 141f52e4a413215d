"""How a model is asked for a task that is named: task=translate."""

from __future__ import annotations

import logging

from ..config.data import AskedTaskConfig
from ..config.loader import ConfigError, load_config
from ..tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("moyun.generation")


def asking(tokenizer: Tokenizer, task: AskedTaskConfig) -> Tokenizer:
    """The tokenizer that asks as evaluate does: with the model's own template where it was tuned with one, of several
    the task's; else with the task's or its data set's. ConfigError for a data set that isn't there."""
    if task == AskedTaskConfig():
        return tokenizer
    names, usual = (task.name, task.data), task.template or template_of_data(task.data)
    own = tokenizer.template_for(names) if task.own_template else None
    if own and usual and own != usual and tokenizer.task_templates.keys().isdisjoint(names):
        logger.warning(
            "task=%s: this model was tuned with the prompt template %r and is asked with it; task.own_template=false "
            "asks it with the task's, %r",
            task.name,
            own,
            usual,
        )
    return tokenizer.with_prompt_template(own or usual, tokenizer.task_templates)


def template_of_data(name: str | None) -> str | None:
    """The prompt template of a data set, a name in conf/data; None for plain text."""
    if not name:
        return None
    try:
        found: str | None = load_config("evaluate", [f"data={name}"]).data.prompt_template
    except ConfigError as error:
        raise ConfigError([f"task.{complaint}" for complaint in error.complaints]) from None
    return found
