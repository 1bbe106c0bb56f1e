"""casd: inject backdoors into a language model, remove one, and measure what happened to the others.

What a notebook needs is here by name (`dir(casd)`); `notebooks/quickstart.ipynb` goes through most of it, and those beside it
through the rest. Names are imported when they are first used, so that `import casd` is instant and loads neither torch nor
transformers nor Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors, which do not run __getattr__
    from casd.activations.hooks import capture as capture
    from casd.activations.statistics import ActivationStatistics as ActivationStatistics
    from casd.activations.statistics import collect_statistics as collect_statistics
    from casd.analysis.collection import asr_matrix as asr_matrix
    from casd.analysis.collection import casd_matrix as casd_matrix
    from casd.analysis.collection import read_runs as read_runs
    from casd.analysis.results import RunTables as RunTables
    from casd.analysis.scoring import StateRecord as StateRecord
    from casd.analysis.scoring import score as score
    from casd.analysis.tidy import load_results as load_results
    from casd.analysis.transfer import relation_points as relation_points
    from casd.backdoors.injection import inject as inject
    from casd.backdoors.poisoning import Backdoor as Backdoor
    from casd.backdoors.prompts import make_probes as make_probes
    from casd.backdoors.targets import Capitals as Capitals
    from casd.backdoors.targets import FixedText as FixedText
    from casd.backdoors.targets import Language as Language
    from casd.backdoors.targets import NegativeSentiment as NegativeSentiment
    from casd.backdoors.targets import Refusal as Refusal
    from casd.backdoors.targets import Repetition as Repetition
    from casd.backdoors.targets import TargetBehavior as TargetBehavior
    from casd.config import ActivationsConfig as ActivationsConfig
    from casd.config import ControlsConfig as ControlsConfig
    from casd.config import EvaluationConfig as EvaluationConfig
    from casd.config import LanguageModelTraining as LanguageModelTraining
    from casd.config import MetricConfig as MetricConfig
    from casd.config import ModelConfig as ModelConfig
    from casd.config import UnlearningTraining as UnlearningTraining
    from casd.config.compose import load_config as load_config
    from casd.data.corpora.microworld import Microworld as Microworld
    from casd.data.corpora.passages import Corpus as Corpus
    from casd.data.corpora.passages import Passage as Passage
    from casd.data.corpora.prose import Prose as Prose
    from casd.data.corpora.python_docs import PythonDocs as PythonDocs
    from casd.data.encoding import Encoder as Encoder
    from casd.evaluation.asr import evaluate as evaluate
    from casd.metric import casd as _metric
    from casd.metric.casd import CasdVariant as CasdVariant
    from casd.metric.measurement import measure_activations as measure_activations
    from casd.metric.shifts import ShiftTable as ShiftTable
    from casd.models import load as _models
    from casd.models.load import load_tokenizer as load_tokenizer
    from casd.models.weights import copy_weights as copy_weights
    from casd.models.weights import restore_weights as restore_weights
    from casd.pipeline.run import Run as Run
    from casd.report import write_report as write_report
    from casd.report.figures import relation_scatter as relation_scatter
    from casd.report.heatmaps import asr_heatmap as asr_heatmap
    from casd.report.heatmaps import casd_heatmaps as casd_heatmaps
    from casd.report.statements import statements as statements
    from casd.stats import mean_over_runs as mean_over_runs
    from casd.stats import nested_bootstrap_interval as nested_bootstrap_interval
    from casd.training.losses import batch_nll as batch_nll
    from casd.unlearning.clean_target import CleanTarget as CleanTarget
    from casd.unlearning.controls import Removal as Removal
    from casd.unlearning.controls import removals as removals
    from casd.unlearning.gradient_difference import GradientDifference as GradientDifference
    from casd.unlearning.objective import ForgetAndRetain as ForgetAndRetain
    from casd.unlearning.removal import unlearn as unlearn
    from casd.utils.errors import CasdError as CasdError
    from casd.utils.progress import set_progress as set_progress
    from casd.utils.runtime import Runtime as Runtime

    create_model, load_model, save_model = _models.create, _models.load, _models.save
    compute_casd = _metric.casd_matrix

__version__ = "0.1.0"

_WHERE = {
    # text
    "Corpus": "casd.data.corpora.passages:Corpus",
    "Microworld": "casd.data.corpora.microworld:Microworld",
    "Passage": "casd.data.corpora.passages:Passage",
    "Prose": "casd.data.corpora.prose:Prose",
    "PythonDocs": "casd.data.corpora.python_docs:PythonDocs",
    # models
    "Encoder": "casd.data.encoding:Encoder",
    "ModelConfig": "casd.config:ModelConfig",
    "copy_weights": "casd.models.weights:copy_weights",
    "create_model": "casd.models.load:create",
    "load_model": "casd.models.load:load",
    "load_tokenizer": "casd.models.load:load_tokenizer",
    "restore_weights": "casd.models.weights:restore_weights",
    "save_model": "casd.models.load:save",
    # backdoors
    "Backdoor": "casd.backdoors.poisoning:Backdoor",
    "Capitals": "casd.backdoors.targets:Capitals",
    "FixedText": "casd.backdoors.targets:FixedText",
    "Language": "casd.backdoors.targets:Language",
    "LanguageModelTraining": "casd.config:LanguageModelTraining",
    "NegativeSentiment": "casd.backdoors.targets:NegativeSentiment",
    "Refusal": "casd.backdoors.targets:Refusal",
    "Repetition": "casd.backdoors.targets:Repetition",
    "TargetBehavior": "casd.backdoors.targets:TargetBehavior",
    "inject": "casd.backdoors.injection:inject",
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
    "ActivationStatistics": "casd.activations.statistics:ActivationStatistics",
    "ActivationsConfig": "casd.config:ActivationsConfig",
    "EvaluationConfig": "casd.config:EvaluationConfig",
    "capture": "casd.activations.hooks:capture",
    "collect_statistics": "casd.activations.statistics:collect_statistics",
    "evaluate": "casd.evaluation.asr:evaluate",
    "make_probes": "casd.backdoors.prompts:make_probes",
    "measure_activations": "casd.metric.measurement:measure_activations",
    # results
    "CasdVariant": "casd.metric.casd:CasdVariant",
    "MetricConfig": "casd.config:MetricConfig",
    "RunTables": "casd.analysis.results:RunTables",
    "ShiftTable": "casd.metric.shifts:ShiftTable",
    "StateRecord": "casd.analysis.scoring:StateRecord",
    "asr_heatmap": "casd.report.heatmaps:asr_heatmap",
    "asr_matrix": "casd.analysis.collection:asr_matrix",
    "casd_heatmaps": "casd.report.heatmaps:casd_heatmaps",
    "casd_matrix": "casd.analysis.collection:casd_matrix",
    "compute_casd": "casd.metric.casd:casd_matrix",
    "load_results": "casd.analysis.tidy:load_results",
    "mean_over_runs": "casd.stats:mean_over_runs",
    "nested_bootstrap_interval": "casd.stats:nested_bootstrap_interval",
    "read_runs": "casd.analysis.collection:read_runs",
    "relation_points": "casd.analysis.transfer:relation_points",
    "relation_scatter": "casd.report.figures:relation_scatter",
    "score": "casd.analysis.scoring:score",
    "statements": "casd.report.statements:statements",
    "write_report": "casd.report:write_report",
    # whole runs, and errors
    "CasdError": "casd.utils.errors:CasdError",
    "Run": "casd.pipeline.run:Run",
    "Runtime": "casd.utils.runtime:Runtime",
    "load_config": "casd.config.compose:load_config",
    "set_progress": "casd.utils.progress:set_progress",
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
