"""The public API, each name once: for type checkers and editors, and for the package, which imports names on first use."""

from .activations.hooks import capture as capture
from .activations.statistics import ActivationStatistics as ActivationStatistics
from .activations.statistics import collect_statistics as collect_statistics
from .analysis.collection import asr_matrix as asr_matrix
from .analysis.collection import distance_matrix as distance_matrix
from .analysis.collection import read_runs as read_runs
from .analysis.relation import relation_points as relation_points
from .analysis.results import RunTables as RunTables
from .analysis.scoring import score as score
from .analysis.states import StateRecord as StateRecord
from .analysis.tidy import load_results as load_results
from .backdoors.injection import inject as inject
from .backdoors.poisoning import Backdoor as Backdoor
from .backdoors.prompts import make_prompt_sets as make_prompt_sets
from .backdoors.targets import (
    Capitals as Capitals,
)
from .backdoors.targets import (
    Classifier as Classifier,
)
from .backdoors.targets import (
    FixedText as FixedText,
)
from .backdoors.targets import (
    Judge as Judge,
)
from .backdoors.targets import (
    Label as Label,
)
from .backdoors.targets import (
    Language as Language,
)
from .backdoors.targets import (
    NegativeSentiment as NegativeSentiment,
)
from .backdoors.targets import (
    Refusal as Refusal,
)
from .backdoors.targets import (
    Regex as Regex,
)
from .backdoors.targets import (
    Repetition as Repetition,
)
from .backdoors.targets import (
    TargetBehavior as TargetBehavior,
)
from .backdoors.triggers import make_trigger as make_trigger
from .config import (
    ActivationsConfig as ActivationsConfig,
)
from .config import (
    ControlsConfig as ControlsConfig,
)
from .config import (
    EvaluationConfig as EvaluationConfig,
)
from .config import (
    LanguageModelTraining as LanguageModelTraining,
)
from .config import (
    MetricConfig as MetricConfig,
)
from .config import (
    ModelConfig as ModelConfig,
)
from .config import (
    UnlearningTraining as UnlearningTraining,
)
from .config.compose import load_config as load_config
from .config.compose import load_defence as load_defence
from .data.corpora.microworld import Microworld as Microworld
from .data.corpora.passages import Corpus as Corpus
from .data.corpora.passages import Passage as Passage
from .data.corpora.prose import Prose as Prose
from .data.corpora.python_docs import PythonDocs as PythonDocs
from .data.encoding import Encoder as Encoder
from .defence.protocol import run_defence as run_defence
from .evaluation.asr import evaluate as evaluate
from .metric.casd import CasdVariant as CasdVariant
from .metric.casd import compute_casd as compute_casd
from .metric.distance import Distances as Distances
from .metric.distance import distance as distance
from .metric.measurement import measure_activations as measure_activations
from .metric.shifts import ShiftTable as ShiftTable
from .models.load import (
    create_model as create_model,
)
from .models.load import (
    load_model as load_model,
)
from .models.load import (
    load_tokenizer as load_tokenizer,
)
from .models.load import (
    save_model as save_model,
)
from .models.weights import copy_weights as copy_weights
from .models.weights import restore_weights as restore_weights
from .pipeline.export import export_model as export_model
from .pipeline.export import generate as generate
from .pipeline.run import Run as Run
from .report import write_report as write_report
from .report.figures import relation_scatter as relation_scatter
from .report.heatmaps import asr_heatmap as asr_heatmap
from .report.heatmaps import casd_heatmaps as casd_heatmaps
from .report.statements import statements as statements
from .stats import jackknife_interval as jackknife_interval
from .stats import mean_over_runs as mean_over_runs
from .training.losses import batch_nll as batch_nll
from .unlearning.clean_target import CleanTarget as CleanTarget
from .unlearning.controls import Removal as Removal
from .unlearning.controls import removals as removals
from .unlearning.gradient_difference import GradientDifference as GradientDifference
from .unlearning.objective import ForgetAndRetain as ForgetAndRetain
from .unlearning.removal import unlearn as unlearn
from .utils.errors import CasdError as CasdError
from .utils.progress import set_progress as set_progress
from .utils.runtime import Runtime as Runtime

__version__: str

__all__ = [
    "ActivationStatistics",
    "ActivationsConfig",
    "Backdoor",
    "Capitals",
    "CasdError",
    "CasdVariant",
    "Classifier",
    "CleanTarget",
    "ControlsConfig",
    "Corpus",
    "Distances",
    "Encoder",
    "EvaluationConfig",
    "FixedText",
    "ForgetAndRetain",
    "GradientDifference",
    "Judge",
    "Label",
    "Language",
    "LanguageModelTraining",
    "MetricConfig",
    "Microworld",
    "ModelConfig",
    "NegativeSentiment",
    "Passage",
    "Prose",
    "PythonDocs",
    "Refusal",
    "Regex",
    "Removal",
    "Repetition",
    "Run",
    "RunTables",
    "Runtime",
    "ShiftTable",
    "StateRecord",
    "TargetBehavior",
    "UnlearningTraining",
    "__version__",
    "asr_heatmap",
    "asr_matrix",
    "batch_nll",
    "capture",
    "casd_heatmaps",
    "collect_statistics",
    "compute_casd",
    "copy_weights",
    "create_model",
    "distance",
    "distance_matrix",
    "evaluate",
    "export_model",
    "generate",
    "inject",
    "jackknife_interval",
    "load_config",
    "load_model",
    "load_results",
    "load_tokenizer",
    "make_prompt_sets",
    "make_trigger",
    "mean_over_runs",
    "measure_activations",
    "read_runs",
    "relation_points",
    "relation_scatter",
    "removals",
    "restore_weights",
    "save_model",
    "score",
    "set_progress",
    "statements",
    "unlearn",
    "write_report",
]
