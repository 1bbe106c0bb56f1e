"""What `casd.metric.distance` compares: models by name, and the texts on which they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casd.backdoors.poisoning import english
from casd.config import ModelConfig
from casd.config.compose import load_config
from casd.config.options import groups
from casd.data.corpora import CORPORA
from casd.data.corpora.files import Files
from casd.data.corpora.passages import Corpus
from casd.models import load as models
from casd.models.adapters import parts
from casd.models.files import find_gguf
from casd.utils.errors import ConfigError, CorpusError, ModelError, first_line
from casd.utils.registry import build, unknown
from casd.utils.runtime import give_freed_memory_back
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A model that is in memory, or where its files are.

    Attributes:
        name: its name in tables.
        given: the model in memory, or the description of its files.
    """

    name: str
    given: PreTrainedModel | ModelConfig

    def load(self, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """Return the model, loaded onto `device` unless it is in memory, and its tokenizer, None if it is in memory."""
        if not isinstance(self.given, ModelConfig):
            return self.given, None
        model, tokenizer = models.create_model(self.given, Corpus([], [], [], []), seed=0)
        give_freed_memory_back(model, device)
        return model.to(device), tokenizer

    def read_config(self) -> PreTrainedConfig | None:
        """Return transformers' configuration without loading the weights; None for a GGUF file."""
        from transformers import AutoConfig

        if not isinstance(self.given, ModelConfig):
            return self.given.config
        folder = _folder(self.given)
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False) if folder else None
        except Exception as error:  # transformers raises errors of many types, all caused by the file
            raise ModelError(f"The configuration of the model in {folder} cannot be read: {first_line(error)}") from error

    def read_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer; None if the model is in memory or a GGUF file, or has no files of a tokenizer."""
        folder = _folder(self.given) if isinstance(self.given, ModelConfig) else None
        if folder is None or not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return None
        return models.load_tokenizer(folder)


def _folder(config: ModelConfig) -> Path | None:
    """Return the folder of a model, or of the base of a model with an adapter; None for a GGUF file."""
    match models.origin(config):
        case "adapter":
            return _folder(parts(config)[0])
        case "gguf":
            find_gguf(str(config.path))
            return None
        case _:
            return models.fetch(config)


def named_models(before: Any, given: Mapping[str, Any] | Sequence[Any], dtype: str) -> list[ComparedModel]:
    """Return `before` and the other models with their names.

    A model without a name is named after the last part of its path, or its whole path if that is not unique.

    Raises:
        ConfigError: fewer than two models beside `before`, or one that is given twice.
        ModelError: something that is no model.
    """
    if isinstance(given, str | Path) or len(given) < 2:
        raise ConfigError("CASD is a distance between the changes of two models: give at least two beside the one before.")
    others = list(given.values() if isinstance(given, Mapping) else given)
    everything = [before, *others]
    names = [_name(each, place) for place, each in enumerate(everything)]
    names = [_whole(each) if names.count(name) > 1 else name for name, each in zip(names, everything, strict=True)]
    if isinstance(given, Mapping):
        names[1:] = map(str, given)
    if repeated := next((name for name in names[1:] if names[1:].count(name) > 1), None):
        raise ConfigError(f"{repeated} is given twice; give each model once, or names for them.")
    return [ComparedModel(name, _given(each, dtype)) for name, each in zip(names, everything, strict=True)]


def _name(model: Any, place: int) -> str:
    if isinstance(model, str | Path):
        return Path(str(model).rpartition("+")[2]).name or str(model)
    return f"model_{place}" if place else "before"


def _whole(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else f"model in memory {id(model)}"


def _given(model: Any, dtype: str) -> PreTrainedModel | ModelConfig:
    if isinstance(model, str | Path):
        config = ModelConfig(name="model", source="pretrained", path=str(model), dtype=dtype)
        models.origin(config)  # find misspelled paths before a model is loaded
        return config
    if not hasattr(model, "config") or not isinstance(model, torch.nn.Module):
        raise ModelError(f"A {type(model).__name__} is no model; give a path, a hub id, or a transformers model.")
    return model


@dataclass(frozen=True, eq=False)
class Reference:
    """What all models have in common with the first.

    Attributes:
        name: name of the first model.
        config: its configuration.
        tokenizer: its tokenizer.
        texts: the texts, which all tokenizers must split alike.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[str]

    def check(self, name: str, config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Check that the activations of the model `name` can be compared; what is None is not checked.

        Raises:
            ModelError: another architecture, number of layers, width or tokenization.
        """
        if config and shape_of(config) != shape_of(self.config):
            raise ModelError(
                f"{name} ({shape_of(config)}) has another shape than {self.name} ({shape_of(self.config)}): only models of one"
                " architecture and size can be compared."
            )
        for text in self.texts if tokenizer else ():
            if tokenizer(text)["input_ids"] != self.tokenizer(text)["input_ids"]:  # type: ignore[misc]
                raise ModelError(
                    f"The tokenizer of {name} is not that of {self.name} (it splits {text[:40]!r} into other tokens):"
                    " activations can be compared at the same tokens only."
                )


def shape_of(config: PreTrainedConfig) -> str:
    """Describe the architecture, number of layers and width of a model."""
    text = config.get_text_config(decoder=True)
    return f"{text.model_type}, {text.num_hidden_layers} layers, width {text.hidden_size}"


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a text of its own is too long for a name; "~" of an unknown user
        return False


def read_texts(texts: str | Path | Sequence[str]) -> list[str]:
    """Return the texts: those given, of a file or folder, or the English evaluation prompts of a corpus.

    Raises:
        ConfigError: neither a file nor the name of a corpus.
        CorpusError: there is no text, or the file cannot be read.
    """
    if not isinstance(texts, str | Path):
        found = list(texts)
        if wrong := next((each for each in found if not isinstance(each, str)), None):
            raise ConfigError(f"A text is a {type(wrong).__name__}; expected a string.")
    elif _exists(texts):
        found = list(Files((str(texts),)).documents())
        if Path(texts).suffix == ".txt" and len(found) == 1:  # no blank lines: a text in each line
            found = Path(texts).expanduser().read_text(encoding="utf-8-sig").splitlines()
    elif str(texts) in (corpora := groups()["corpus"]):
        config = load_config([f"corpus={texts}"]).corpus
        corpus = build(CORPORA, "corpus", config.name, config.params).load(derive_seed(0, "corpus"))
        found = [passage.prompt for passage in english(corpus.evaluation)]
    elif len(Path(texts).parts) > 1 or Path(texts).suffix:
        raise ConfigError(
            f"There is no file {str(texts)[:100]}. Expected a file of texts, or the name of a corpus ({', '.join(corpora)})."
        )
    else:
        raise unknown("file or corpus", str(texts), corpora)
    found = [text for text in found if text.strip()]
    if not found:
        raise CorpusError("There is no text to run the models on: every one given is empty.")
    return found
