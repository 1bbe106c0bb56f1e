"""Benchmarks on a state of the model, through lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

The tasks, their prompts and their metrics are the harness's, or those of YAML files in its format, which may name Python
functions that lie beside them. The harness is an extra (`pip install 'casd[eval]'`) and is imported when it is needed.
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
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.progress import Advance, track
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_SAMPLES = 1000
"""For the standard error of the few metrics that have no formula for it."""


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse tasks that there are not, before anything is trained.

    The names of the harness, more than ten thousand of them, take some seconds to read; a YAML file of one task takes none.

    Raises:
        ConfigError: the harness is not installed, has no such task, or there is no such file of one task.
    """
    _check_installed()
    for task in tasks:
        if _is_file(task):
            if re.search(rb"^group:", _read(task), re.MULTILINE):
                raise ConfigError(f"utility.tasks names {task!r}, which is of a group; name the files of its tasks.")
        elif task not in (names := _task_manager(builtin=True).all_tasks):
            raise unknown("task of utility.tasks:", task, names)


def fingerprint(tasks: Sequence[str]) -> dict[str, str]:
    """What decides, beside the configuration, what is measured: the harness's version, and the SHA-256 of one's own files.

    Files that such a file names in turn (its data, for one) are not looked at.

    Raises:
        ConfigError: the harness is not installed, or there is no such file.
    """
    _check_installed()
    hashes = {task: hashlib.sha256(_read(task)).hexdigest() for task in tasks if _is_file(task)}
    return {"lm_eval": importlib.metadata.version("lm_eval"), **hashes}


def measure_utility(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: UtilityConfig, *, description: str = "utility"
) -> pd.DataFrame:
    """Run the benchmarks on a model in memory.

    A task's own order of items and of examples is kept: the seeds are the harness's, and the global random states are put
    back. Log-likelihoods are computed in float32 whatever the model's precision.

    Args:
        model: on its device; left in evaluation mode.
        tokenizer: its tokenizer.
        config: tasks, examples in the prompt, items, batch size (halved where memory runs out).
        description: for the progress bar, which counts texts that went through the model.

    Returns:
        A row per task and metric: `task`, `metric` (with its filter where it is not the plain one: "exact_match,strict"),
        `value`, `stderr` (NaN where there is none) and `n`, the number of items. A group of tasks that has a mean of its own
        stands for its members.

    Raises:
        ConfigError: the harness is not installed, a task is unknown, or needs pictures or to run code that the model writes.
        CorpusError: a task's data cannot be had, or its file makes no sense.
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
    """The harness's index of tasks; without the built-in ones it is there at once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=builtin)


@cache
def _load(tasks: tuple[str, ...], shots: int, version: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The tasks and groups with their data, once a process, not for every state; `version` tells changed files apart."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for task in tasks:
        try:
            found = _task_manager(builtin=not _is_file(task)).load([task])
        except Exception as error:  # the hub's errors, those of data sets, YAML, jinja and Python in a task's file
            raise CorpusError(
                f"Task {task!r} of utility.tasks cannot be loaded: {_first_line(error)} Data of the Hugging Face hub is"
                " downloaded the first time."
            ) from error
        for name, each in found["tasks"].items():
            if getattr(each, "UNSAFE_CODE", False) or getattr(each, "MULTIMODAL", False):
                raise ConfigError(
                    f"Task {name!r} runs code that the model wrote, or needs pictures; leave it out of utility.tasks."
                )
            if each.get_config("num_fewshot") != 0:  # a task that says 0 cannot have examples
                each.set_config(key="num_fewshot", value=shots)
        loaded["tasks"] |= found["tasks"]
        loaded["groups"] |= found["groups"]
    return loaded


def _harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, advance: Advance) -> Any:
    """The harness's view of the model, with batches that shrink and a bar that moves."""
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
    """What the harness's `simple_evaluate` does, without its survey of the machine, which takes seconds for every state."""
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return evaluate(lm=model, task_dict=loaded, limit=config.limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False)


def _rows(results: Mapping[str, Any]) -> pd.DataFrame:
    """The harness's nested results as a table."""
    members: set[str] = set()
    for group in results.get("groups", {}):
        waiting = [group]
        while waiting:
            found = results["group_subtasks"].get(waiting.pop(), [])
            members.update(found)
            waiting += found
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
    """No bars and no log of the harness, nothing on stdout, and no pool of processes for a bootstrap, inside the block."""
    from tqdm import tqdm

    original = tqdm.__init__

    def without_bar(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "disable": True})

    log = logging.getLogger("lm_eval")
    level, alone = log.level, os.environ.get("DISABLE_MULTIPROC")
    try:
        log.setLevel(logging.ERROR)
        tqdm.__init__ = without_bar
        os.environ["DISABLE_MULTIPROC"] = "1"
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tqdm.__init__ = original
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone


@contextlib.contextmanager
def _harness_seeds(device: torch.device) -> Iterator[None]:
    """The global random states that the harness starts with, inside the block; afterwards those that there were."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    plain, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the harness's tasks draw from the global state
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)  # noqa: NPY002


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {line}." if line else f"{type(error).__name__}."
