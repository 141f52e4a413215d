"""Configuration: sections.py, stages.py and commands.py say what can be set, loading.py reads it, help.py prints it."""

from .benchmark import BenchmarkConfig, GenerationBenchmark, ScalingBenchmark, TrainingBenchmark
from .commands import STAGES, CompareConfig, ConvertConfig, GenerateConfig, RehearseConfig, SyncConfig
from .help import help_text
from .loading import ConfigError, load_config, load_model_config, to_dict, to_yaml, validate
from .lora import LoraConfig
from .sections import (
    DataConfig,
    GenerationConfig,
    ModelConfig,
    SizeConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
)
from .serve import LimitsConfig, ServeConfig
from .stages import (
    MADE_BY_STAGE,
    CommandConfig,
    EvaluateConfig,
    MainConfig,
    PrepareConfig,
    RegisterConfig,
    StageConfig,
    TrainingConfig,
)
from .task import TaskConfig

__all__ = [
    "MADE_BY_STAGE",
    "STAGES",
    "BenchmarkConfig",
    "CommandConfig",
    "CompareConfig",
    "ConfigError",
    "ConvertConfig",
    "DataConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GenerationBenchmark",
    "GenerationConfig",
    "LimitsConfig",
    "LoraConfig",
    "MainConfig",
    "ModelConfig",
    "PrepareConfig",
    "RegisterConfig",
    "RehearseConfig",
    "ScalingBenchmark",
    "ServeConfig",
    "SizeConfig",
    "StageConfig",
    "SyncConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainerConfig",
    "TrainingBenchmark",
    "TrainingConfig",
    "help_text",
    "load_config",
    "load_model_config",
    "to_dict",
    "to_yaml",
    "validate",
]
