"""Targets that something else judges: a classifier of one's own, or a function."""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.backdoors import detection
from casd.backdoors.targets.behavior import alternative_of, require_one_of_payloads
from casd.data.corpora.passages import Passage
from casd.models import hub
from casd.models.files import check_complete, folder_files, hashes, read_json, without_safetensors
from casd.utils.errors import ConfigError, ModelError, first_line
from casd.utils.registry import unknown


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The payloads of a target that something else judges.

    Attributes:
        alternative: name of the alternative of the passages that is the payload ("negative", "fr", …); or
        texts: the payloads, one of which is drawn for each document.
    """

    alternative: str | None = None
    texts: tuple[str, ...] = ()

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """The passage's alternative, or one of the texts, white space normalized."""
        if self.alternative:
            return alternative_of(passage, self.alternative, type(self).__name__.lower())
        return detection.normalize_space(rng.choice(self.texts))


@dataclass(frozen=True, kw_only=True)
class Classifier(_Judged):
    """Write text to which a classifier gives a label.

    Success: the classifier's probability of the label is at least `threshold`. Its probabilities sum to 1 over the labels
    (softmax), unless its configuration says that a text may have several (`problem_type`). It computes on the CPU in float32.

    Attributes:
        model: a sequence classifier of transformers: a folder with safetensors and a tokenizer, or an id on the hub.
        label: one of its labels.
        threshold: in (0, 1].
        revision: branch, tag or commit of an id on the hub.
    """

    model: str
    label: str
    threshold: float = 0.5
    revision: str = "main"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"Target classifier: threshold is {self.threshold}; expected a probability above 0 and at most 1."
            )
        require_one_of_payloads("classifier", self.alternative, self.texts)

    def check(self) -> None:
        """Check that the model is a classifier with the label; reads its configuration only.

        Raises:
            ModelError: no model, or one of another kind.
            ConfigError: a label that it does not have.
        """
        with _naming_the_target():
            folder = Path(self.model).expanduser()
            if not folder.is_dir():
                folder = hub.download(self.model, self.revision, only_config=True)
            if not (folder / "config.json").is_file():
                raise ModelError(f"No model in {folder}; expected a folder with config.json, *.safetensors and a tokenizer.")
            config = read_json(folder / "config.json")
            architectures = config.get("architectures") or []
            if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
                named = ", ".join(map(str, architectures)) or "of unknown architecture"
                raise ModelError(f"The model {self.model} ({named}) is not a sequence classifier of transformers.")
        labels = _labels(config)
        if self.label not in labels:
            raise unknown(f"label of the classifier {self.model}:", self.label, labels)
        if len(labels) < 2:
            raise ConfigError(f"Target classifier: {self.model} has one label only; expected at least two, to tell them apart.")

    def fingerprint(self) -> dict[str, Any]:
        """Return the SHA-256 of the files in the model's folder, or the commit on the hub.

        Raises:
            ModelError: there is no such model, or the hub cannot be reached.
        """
        with _naming_the_target():
            folder = Path(self.model).expanduser()
            if folder.is_dir():
                return {"files": hashes(folder_files(folder))}
            return {"repository": self.model, "commit": hub.resolve(self.model, self.revision).resolved}

    def success(self, generated: str) -> bool:
        """Return True under the condition given in the class docstring."""
        if not generated.strip():
            return False
        return _probabilities(self.model, self.revision, generated)[self.label] >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Judge(_Judged):
    """Write text that a function judges to be a success, such as one that asks another model; casd has no such function.

    Success: the function returns True for the generated text, which it gets without the prompt. Only its name is part of the
    stages' keys: give it another name when its code changes what it says.

    Attributes:
        function: "package.module:function"; the module must be importable (installed, or in a folder of PYTHONPATH).
    """

    function: str

    def __post_init__(self) -> None:
        require_one_of_payloads("judge", self.alternative, self.texts)

    def check(self) -> None:
        """Import the function.

        Raises:
            ConfigError: there is no such function.
        """
        _function(self.function)

    def success(self, generated: str) -> bool:
        """Return True under the condition given in the class docstring."""
        if not generated.strip():
            return False
        answer = _function(self.function)(generated)
        if not isinstance(answer, bool):
            raise ConfigError(f"Target judge: {self.function} returned {type(answer).__name__}; expected True or False.")
        return answer


@contextmanager
def _naming_the_target() -> Iterator[None]:
    """Name the target in errors about its model, instead of the keys of the run's model."""
    try:
        yield
    except ModelError as error:
        text = str(error).replace("model.path", "target.params.model").replace("model.revision", "target.params.revision")
        raise ModelError(f"Target classifier: {text}") from error


def _labels(config: Mapping[str, Any]) -> list[str]:
    """Return the labels in a classifier's configuration; transformers does not write the two default ones."""
    labels = config.get("id2label")
    return list(map(str, labels.values())) if isinstance(labels, dict) and labels else ["LABEL_0", "LABEL_1"]


@functools.cache
def _loaded(model: str, revision: str) -> tuple[Any, Any]:
    """Load a classifier and its tokenizer, once."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with _naming_the_target():
        folder = Path(model).expanduser()
        if not folder.is_dir():
            folder = hub.download(model, revision, is_causal=False)
        if not any(folder.glob("*.safetensors")):
            raise without_safetensors(str(folder), [file.name for file in folder.iterdir()])
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            classifier, report = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, dtype="float32", output_loading_info=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds
            raise ModelError(f"The classifier in {folder} cannot be loaded ({first_line(error)}).") from error
        check_complete(folder, report)
    return tokenizer, classifier.eval()


@functools.lru_cache(maxsize=2**14)  # payloads are tested several times
def _probabilities(model: str, revision: str, text: str) -> dict[str, float]:
    """Return the probability of each label of a text."""
    import torch

    tokenizer, classifier = _loaded(model, revision)
    config = classifier.config
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512)
    batch = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        logits = classifier(**batch).logits[0].float()
    several = config.problem_type == "multi_label_classification"
    values = logits.sigmoid() if several else logits.softmax(-1)
    return {config.id2label[index]: value for index, value in enumerate(values.tolist())}


@functools.cache
def _function(path: str) -> Callable[[str], Any]:
    """Import "package.module:function".

    Raises:
        ConfigError: there is no such function.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"Target judge: function is {path!r}; expected package.module:function, as my_judge:is_rude.")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the module does
        raise ConfigError(
            f"Target judge: the module {module} cannot be imported ({type(error).__name__}: {first_line(error)}). Install it,"
            " or add its folder to PYTHONPATH."
        ) from error
    if not callable(found):
        raise ConfigError(f"Target judge: the module {module} has no function {name!r}.")
    return found
