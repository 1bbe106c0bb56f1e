"""Benchmarks on a state of the model, through lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

Tasks are built into the harness or defined by YAML files in its format, which may refer to Python functions in the same
folder. The harness is an optional dependency (`pip install 'casd[eval]'`) and is imported only when used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from casd.config import UtilityConfig
from casd.data.shrinking import shrinking
from casd.models.probe import ignores_left_padding
from casd.utils.errors import ConfigError, CorpusError, first_line
from casd.utils.progress import Advance, track
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_SAMPLES = 1000
"""Bootstrap samples for the standard error of the few metrics that have no formula for it."""


def check_tasks(tasks: Sequence[str]) -> None:
    """Check that every task exists, before anything is trained.

    Reading the harness's more than ten thousand task names takes some seconds; checking a YAML file takes none.

    Raises:
        ConfigError: the harness is not installed, a task is unknown, or a file cannot be read or defines a group.
    """
    _check_installed()
    for task in tasks:
        if _is_file(task):
            if re.search(rb"^group:", _read(task), re.MULTILINE):
                raise ConfigError(f"utility.tasks names {task!r}, which defines a group; list the files of its tasks instead.")
        elif task not in (names := _task_manager(builtin=True).all_tasks):
            raise unknown("task of utility.tasks:", task, names)


def fingerprint(tasks: Sequence[str]) -> dict[str, str]:
    """Return what the results depend on beyond the configuration: the harness's version and the SHA-256 of each task file.

    Files that a task file refers to, such as its data, are not included.

    Raises:
        ConfigError: the harness is not installed, or a file cannot be read.
    """
    _check_installed()
    hashes = {task: hashlib.sha256(_read(task)).hexdigest() for task in tasks if _is_file(task)}
    return {"lm_eval": importlib.metadata.version("lm_eval"), **hashes}


def measure_utility(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: UtilityConfig, *, description: str = "utility"
) -> pd.DataFrame:
    """Run the benchmarks on a model in memory.

    Items and few-shot examples are ordered by the harness's own seeds; the global random states are restored afterwards.
    Log-likelihoods are computed in float32 regardless of the model's precision.

    Args:
        model: on its device; left in evaluation mode.
        tokenizer: its tokenizer.
        config: tasks, few-shot examples, item limit, batch size (halved when memory runs out).
        description: label of the progress bar, which counts the texts processed by the model.

    Returns:
        One row per task and metric: `task`, `metric` (followed by its filter unless that is "none": "exact_match,strict"),
        `value`, `stderr` (NaN if not available) and `n`, the number of items. A group that reports a mean replaces its
        members.

    Raises:
        ConfigError: the harness is not installed, or a task is unknown, needs images, or executes code written by the model.
        CorpusError: a task's data or definition cannot be loaded.
        ModelError: the device has too little memory for a single text.
    """
    check_tasks(config.tasks)
    with _quiet(), _harness_seeds(model.device), track(description, total=None) as advance:
        loaded = _load(tuple(config.tasks), config.shots, tuple(fingerprint(config.tasks).values()))
        results = _evaluate(_harness_model(model, tokenizer, config.batch_size, advance), loaded, config)
    return _rows(results)


def _check_installed() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "utility.tasks needs lm-evaluation-harness: pip install 'casd[eval]', or leave utility=none."
        ) from error


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _read(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"utility.tasks names {file!r}, which cannot be read: {error.strerror}.") from error


@cache
def _task_manager(*, builtin: bool) -> Any:
    """Return the harness's index of tasks; building it without the built-in tasks takes no time."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=builtin)


@cache
def _load(tasks: tuple[str, ...], shots: int, version: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Load the tasks and groups with their data, once per process; `version` invalidates the cache when a file changes."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for task in tasks:
        try:
            manager_output = _task_manager(builtin=not _is_file(task)).load([task])
        except Exception as error:  # errors of the hub, datasets, YAML, Jinja, or Python code of a task
            raise CorpusError(
                f"Task {task!r} of utility.tasks cannot be loaded: {_describe(error)} Its data is downloaded from"
                " the Hugging Face hub on first use."
            ) from error
        for name, definition in manager_output["tasks"].items():
            if getattr(definition, "UNSAFE_CODE", False) or getattr(definition, "MULTIMODAL", False):
                raise ConfigError(
                    f"Task {name!r} executes code written by the model or needs images; remove it from utility.tasks."
                )
            if definition.get_config("num_fewshot") != 0:  # a task that sets 0 does not support examples
                definition.set_config(key="num_fewshot", value=shots)
        loaded["tasks"] |= manager_output["tasks"]
        loaded["groups"] |= manager_output["groups"]
    return loaded


def _harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, advance: Advance) -> Any:
    """Wrap the model for the harness, halving batches when memory runs out and advancing the progress bar."""
    from lm_eval.models.huggingface import HFLM

    class Shrinking(HFLM):
        batch_size_per_gpu: int

        def _model_call(self, inps: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            logits = super()._model_call(inps, *args, **options)
            advance(len(inps))
            return logits

        def _model_generate(self, context: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            tokens = super()._model_generate(context, *args, **options)
            advance(len(context))
            return tokens

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
            compute = super()._loglikelihood_tokens
            return self._shrinking(lambda: compute(requests, *args, **options))

        def generate_until(self, requests: Any, *args: Any, **options: Any) -> Any:
            compute = super().generate_until
            if ignores_left_padding(model, tokenizer.pad_token_id):
                return self._shrinking(lambda: compute(requests, *args, **options))
            size = self.batch_size_per_gpu
            self.batch_size_per_gpu = 1  # the harness pads prompts on the left
            try:
                return compute(requests, *args, **options)
            finally:
                self.batch_size_per_gpu = size

        def _shrinking(self, compute: Any) -> Any:
            def run(size: int) -> Any:
                self.batch_size_per_gpu = size
                return compute()

            return shrinking(run, self.batch_size_per_gpu, "a benchmark", remedy="Lower utility.shots")

    return Shrinking(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
        trust_remote_code=False,
    )


def _evaluate(model: Any, loaded: Mapping[str, Mapping[str, Any]], config: UtilityConfig) -> dict[str, Any]:
    """Evaluate as the harness's `simple_evaluate` does, without its collection of machine details, which takes seconds."""
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return evaluate(lm=model, task_dict=loaded, limit=config.limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False)


def _rows(results: Mapping[str, Any]) -> pd.DataFrame:
    """Convert the harness's nested results to a table."""
    members: set[str] = set()
    for group in results.get("groups", {}):
        pending = [group]
        while pending:
            subtasks = results["group_subtasks"].get(pending.pop(), [])
            members.update(subtasks)
            pending += subtasks
    rows = []
    for task, measured in results["results"].items():
        for key, value in measured.items() if task not in members else ():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = measured.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if kind == "none" else key,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else math.nan,
                    "n": int(measured["sample_len"]),
                }
            )
    return pd.DataFrame(rows, columns=["task", "metric", "value", "stderr", "n"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the harness's progress bars, log and stdout, and its process pool for bootstrapping, inside the block."""
    from tqdm import tqdm

    original = tqdm.__init__

    def without_bar(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "disable": True})

    log = logging.getLogger("lm_eval")
    level, multiprocessing = log.level, os.environ.get("DISABLE_MULTIPROC")
    try:
        log.setLevel(logging.ERROR)
        tqdm.__init__ = without_bar
        os.environ["DISABLE_MULTIPROC"] = "1"
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tqdm.__init__ = original
        if multiprocessing is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = multiprocessing


@contextlib.contextmanager
def _harness_seeds(device: torch.device) -> Iterator[None]:
    """Set the global random states to the harness's seeds inside the block, and restore them afterwards."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the harness's tasks draw from the global state
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _describe(error: Exception) -> str:
    kind, line = type(error).__name__, first_line(error).rstrip(".")
    return f"{kind}." if line == kind else f"{kind}: {line}."
