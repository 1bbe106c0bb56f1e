"""Seal the attacked model: a folder that has its weights and tokenizer, and nothing else of the attacker.

The folder's name ends with a hash of its files. Beside it are digests of the attacker's triggers, which only tell whether a
dummy's trigger collides with one of them. They keep a defence honest; they do not stop somebody who tries all phrases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from casd.backdoors.triggers import make_trigger
from casd.config import BackdoorConfig, ModelConfig
from casd.config.states import INJECTED
from casd.models import load as models
from casd.models.weights import merge_adapters
from casd.pipeline.run import Run
from casd.pipeline.saved import copy_weights_of, link_or_copy
from casd.utils.atomic import unfinished_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError
from casd.utils.sealed import read_json, write_json

NAME = "suspect"
"""The model's name in the defender's runs, which must not tell the attacker's."""


def seal(run: Run) -> ModelConfig:
    """Write the injected model of the attacker's finished `run` to `sealed/` of its store, and return its configuration.

    Raises:
        StoreError: the model is not finished, or the store cannot be written.
    """
    root = run.store.root / "sealed"
    with explaining_disk_errors("the sealed model", root):
        root.mkdir(parents=True, exist_ok=True)
        with unfinished_beside(root / "model") as begun:
            if not copy_weights_of(run.inputs, INJECTED, begun, link_or_copy):
                model = run.inputs.kept_model(INJECTED)
                assert model is not None  # the injected model always is
                merge_adapters(model)
                models.save_model(model, run.inputs.encoder.tokenizer, begun)
            config = run.config.model
            files = models.fingerprint(_suspect(config, begun))
            folder = root / f"{NAME}-{hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:20]}"
            if not folder.is_dir():
                begun.rename(folder)
        write_json(_digests_file(folder), _digests(run.config.backdoor))
    return _suspect(config, folder)


def _suspect(config: ModelConfig, folder: Path) -> ModelConfig:
    kept = {name: getattr(config, name) for name in ("dtype", "max_length", "format", "system_prompt")}
    return ModelConfig(name=NAME, source="pretrained", path=str(folder), **kept)


def check_dummies(model: ModelConfig, dummies: Mapping[str, BackdoorConfig]) -> None:
    """Check that no dummy's trigger is, contains or is inside a trigger of the attacker who sealed `model`.

    Raises:
        ConfigError: one collides; the message does not say which.
    """
    file = _digests_file(Path(str(model.path)))
    if not file.is_file():  # a suspect model from elsewhere
        return
    digests = {kind: set(values) for kind, values in read_json(file).items()}
    for section in dummies.values():
        texts = _texts(section)
        parts = {_digest(part) for text in texts for part in _parts(text)}
        if digests["parts"] & set(map(_digest, texts)) or digests["triggers"] & parts:
            raise ConfigError(
                "A dummy's trigger cannot be told apart from a trigger of the attacker. Draw others with another seed, or list"
                " others; which one it is stays sealed."
            )


def _digests_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.triggers.json")


def _digests(backdoors: Mapping[str, BackdoorConfig]) -> dict[str, list[str]]:
    triggers = [text for section in backdoors.values() for text in _texts(section)]
    parts: Iterable[str] = (part for trigger in triggers for part in _parts(trigger))
    return {"triggers": sorted(map(_digest, triggers)), "parts": sorted(set(map(_digest, parts)))}


def _texts(section: BackdoorConfig) -> tuple[str, ...]:
    """The texts of a trigger, or its label if it has none."""
    trigger = make_trigger(section.trigger)
    return trigger.texts() or (trigger.label,)


def _parts(text: str) -> list[str]:
    """All sequences of words in a text."""
    words = text.split()
    return [" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]


def _digest(phrase: str) -> str:
    return hashlib.sha256(f"casd: {phrase.casefold()}".encode()).hexdigest()
