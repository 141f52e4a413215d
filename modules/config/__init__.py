"""Configuration: sections.py, stages.py and commands.py say what can be set, loading.py reads it, help.py prints it."""

from __future__ import annotations

from .base import CommandConfig, StageConfig, TrackingConfig
from .commands import MADE_BY_STAGE, STAGES, CompareConfig, ConvertConfig, MainConfig, RehearseConfig, SyncConfig
from .data import DataConfig, PrepareConfig, TokenizerConfig
from .evaluation import EvaluateConfig, RegisterConfig, TaskConfig
from .generation import GenerateConfig, GenerationConfig, LimitsConfig, ServeConfig
from .help import help_text
from .loader import ConfigError, load_config, load_model_config, to_dict, to_yaml, validate
from .model import LoraConfig, ModelConfig, SizeConfig
from .training import TrainConfig, TrainerConfig, TrainingConfig

__all__ = [
    "MADE_BY_STAGE",
    "STAGES",
    "CommandConfig",
    "CompareConfig",
    "ConfigError",
    "ConvertConfig",
    "DataConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GenerationConfig",
    "LimitsConfig",
    "LoraConfig",
    "MainConfig",
    "ModelConfig",
    "PrepareConfig",
    "RegisterConfig",
    "RehearseConfig",
    "ServeConfig",
    "SizeConfig",
    "StageConfig",
    "SyncConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainerConfig",
    "TrainingConfig",
    "help_text",
    "load_config",
    "load_model_config",
    "to_dict",
    "to_yaml",
    "validate",
]
