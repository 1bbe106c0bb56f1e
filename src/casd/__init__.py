"""casd: inject backdoors into a language model, remove one, and measure what happened to the others.

What a notebook needs is here by name (`dir(casd)`); `notebooks/quickstart.ipynb` goes through most of it, and those beside it
through the rest. Names are imported when they are first used, so that `import casd` is instant and loads neither torch nor
transformers nor Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors, which do not run __getattr__
    from casd import metric as _metric
    from casd import models as _models
    from casd.activation_statistics import ActivationStatistics as ActivationStatistics
    from casd.activation_statistics import collect_statistics as collect_statistics
    from casd.activations import capture as capture
    from casd.compose import load_config as load_config
    from casd.config import ActivationsConfig as ActivationsConfig
    from casd.config import ControlsConfig as ControlsConfig
    from casd.config import EvaluationConfig as EvaluationConfig
    from casd.config import LanguageModelTraining as LanguageModelTraining
    from casd.config import MetricConfig as MetricConfig
    from casd.config import ModelConfig as ModelConfig
    from casd.config import UnlearningTraining as UnlearningTraining
    from casd.corpora.microworld import Microworld as Microworld
    from casd.corpora.passages import Corpus as Corpus
    from casd.corpora.passages import Passage as Passage
    from casd.corpora.prose import Prose as Prose
    from casd.corpora.python_docs import PythonDocs as PythonDocs
    from casd.encoding import Encoder as Encoder
    from casd.errors import CasdError as CasdError
    from casd.evaluation import evaluate as evaluate
    from casd.finished.tidy import load_results as load_results
    from casd.injection import inject as inject
    from casd.measurement import measure_activations as measure_activations
    from casd.metric import CasdVariant as CasdVariant
    from casd.models import load_tokenizer as load_tokenizer
    from casd.pipeline import Run as Run
    from casd.poisoning import Backdoor as Backdoor
    from casd.probes import make_probes as make_probes
    from casd.progress import set_progress as set_progress
    from casd.report import write_report as write_report
    from casd.report.collect import asr_matrix as asr_matrix
    from casd.report.collect import casd_matrix as casd_matrix
    from casd.report.collect import read_runs as read_runs
    from casd.report.figures import relation_scatter as relation_scatter
    from casd.report.heatmaps import asr_heatmap as asr_heatmap
    from casd.report.heatmaps import casd_heatmaps as casd_heatmaps
    from casd.report.statements import statements as statements
    from casd.results import RunTables as RunTables
    from casd.runtime import Runtime as Runtime
    from casd.scoring import StateRecord as StateRecord
    from casd.scoring import score as score
    from casd.shifts import ShiftTable as ShiftTable
    from casd.stats import mean_over_runs as mean_over_runs
    from casd.stats import nested_bootstrap_interval as nested_bootstrap_interval
    from casd.targets import Capitals as Capitals
    from casd.targets import FixedText as FixedText
    from casd.targets import Language as Language
    from casd.targets import NegativeSentiment as NegativeSentiment
    from casd.targets import Refusal as Refusal
    from casd.targets import Repetition as Repetition
    from casd.targets import TargetBehavior as TargetBehavior
    from casd.training.losses import batch_nll as batch_nll
    from casd.transfer import relation_points as relation_points
    from casd.unlearning.clean_target import CleanTarget as CleanTarget
    from casd.unlearning.controls import Removal as Removal
    from casd.unlearning.controls import removals as removals
    from casd.unlearning.gradient_difference import GradientDifference as GradientDifference
    from casd.unlearning.objective import ForgetAndRetain as ForgetAndRetain
    from casd.unlearning.removal import unlearn as unlearn
    from casd.weights import copy_weights as copy_weights
    from casd.weights import restore_weights as restore_weights

    create_model, load_model, save_model = _models.create, _models.load, _models.save
    compute_casd = _metric.casd_matrix

__version__ = "0.1.0"

_WHERE = {
    # text
    "Corpus": "casd.corpora.passages:Corpus",
    "Microworld": "casd.corpora.microworld:Microworld",
    "Passage": "casd.corpora.passages:Passage",
    "Prose": "casd.corpora.prose:Prose",
    "PythonDocs": "casd.corpora.python_docs:PythonDocs",
    # models
    "Encoder": "casd.encoding:Encoder",
    "ModelConfig": "casd.config:ModelConfig",
    "copy_weights": "casd.weights:copy_weights",
    "create_model": "casd.models:create",
    "load_model": "casd.models:load",
    "load_tokenizer": "casd.models:load_tokenizer",
    "restore_weights": "casd.weights:restore_weights",
    "save_model": "casd.models:save",
    # backdoors
    "Backdoor": "casd.poisoning:Backdoor",
    "Capitals": "casd.targets:Capitals",
    "FixedText": "casd.targets:FixedText",
    "Language": "casd.targets:Language",
    "LanguageModelTraining": "casd.config:LanguageModelTraining",
    "NegativeSentiment": "casd.targets:NegativeSentiment",
    "Refusal": "casd.targets:Refusal",
    "Repetition": "casd.targets:Repetition",
    "TargetBehavior": "casd.targets:TargetBehavior",
    "inject": "casd.injection:inject",
    # removals
    "CleanTarget": "casd.unlearning.clean_target:CleanTarget",
    "ControlsConfig": "casd.config:ControlsConfig",
    "ForgetAndRetain": "casd.unlearning.objective:ForgetAndRetain",
    "GradientDifference": "casd.unlearning.gradient_difference:GradientDifference",
    "Removal": "casd.unlearning.controls:Removal",
    "UnlearningTraining": "casd.config:UnlearningTraining",
    "batch_nll": "casd.training.losses:batch_nll",
    "removals": "casd.unlearning.controls:removals",
    "unlearn": "casd.unlearning.removal:unlearn",
    # measurements
    "ActivationStatistics": "casd.activation_statistics:ActivationStatistics",
    "ActivationsConfig": "casd.config:ActivationsConfig",
    "EvaluationConfig": "casd.config:EvaluationConfig",
    "capture": "casd.activations:capture",
    "collect_statistics": "casd.activation_statistics:collect_statistics",
    "evaluate": "casd.evaluation:evaluate",
    "make_probes": "casd.probes:make_probes",
    "measure_activations": "casd.measurement:measure_activations",
    # results
    "CasdVariant": "casd.metric:CasdVariant",
    "MetricConfig": "casd.config:MetricConfig",
    "RunTables": "casd.results:RunTables",
    "ShiftTable": "casd.shifts:ShiftTable",
    "StateRecord": "casd.scoring:StateRecord",
    "asr_heatmap": "casd.report.heatmaps:asr_heatmap",
    "asr_matrix": "casd.report.collect:asr_matrix",
    "casd_heatmaps": "casd.report.heatmaps:casd_heatmaps",
    "casd_matrix": "casd.report.collect:casd_matrix",
    "compute_casd": "casd.metric:casd_matrix",
    "load_results": "casd.finished.tidy:load_results",
    "mean_over_runs": "casd.stats:mean_over_runs",
    "nested_bootstrap_interval": "casd.stats:nested_bootstrap_interval",
    "read_runs": "casd.report.collect:read_runs",
    "relation_points": "casd.transfer:relation_points",
    "relation_scatter": "casd.report.figures:relation_scatter",
    "score": "casd.scoring:score",
    "statements": "casd.report.statements:statements",
    "write_report": "casd.report:write_report",
    # whole runs, and errors
    "CasdError": "casd.errors:CasdError",
    "Run": "casd.pipeline:Run",
    "Runtime": "casd.runtime:Runtime",
    "load_config": "casd.compose:load_config",
    "set_progress": "casd.progress:set_progress",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Import a name of the public API at its first use (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """The public API, loaded or not."""
    return sorted({*globals(), *_WHERE})
