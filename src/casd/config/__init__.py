"""The schema of the configuration: dataclasses that check themselves. `configs/` has the values, `compose` joins both.

The sections can be built in Python and passed to the functions that take them. Importing them imports neither Hydra nor torch.
"""

from casd.config.defence import AttackConfig, DefenceConfig, DefendConfig
from casd.config.fields import MISSING, Choice
from casd.config.inputs import BackdoorConfig, EveryBackdoorConfig, ModelConfig
from casd.config.measurement import ActivationsConfig, EvaluationConfig, MetricConfig, UtilityConfig
from casd.config.persistence import PersistenceConfig
from casd.config.run import Config, RuntimeConfig
from casd.config.training import DECOY_RATE, InjectionConfig, LanguageModelTraining, LoraConfig, TrainingConfig
from casd.config.unlearning import PHANTOMS, ControlsConfig, StoppingConfig, TuningConfig, UnlearningConfig, UnlearningTraining

__all__ = [
    "DECOY_RATE",
    "MISSING",
    "PHANTOMS",
    "ActivationsConfig",
    "AttackConfig",
    "BackdoorConfig",
    "Choice",
    "Config",
    "ControlsConfig",
    "DefenceConfig",
    "DefendConfig",
    "EvaluationConfig",
    "EveryBackdoorConfig",
    "InjectionConfig",
    "LanguageModelTraining",
    "LoraConfig",
    "MetricConfig",
    "ModelConfig",
    "PersistenceConfig",
    "RuntimeConfig",
    "StoppingConfig",
    "TrainingConfig",
    "TuningConfig",
    "UnlearningConfig",
    "UnlearningTraining",
    "UtilityConfig",
]
