"""Checks before anything is trained: of the configuration as a whole, then with the corpus, then with the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from casd.analysis.scoring import casd_variants, check_captured
from casd.backdoors.poisoning import Backdoor, document_counts, english
from casd.backdoors.prompts import evaluation_passages
from casd.config import Config
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.evaluation.benchmarks import check_tasks
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import check_controls
from casd.unlearning.removal import held_out
from casd.unlearning.tuning import settings, with_setting
from casd.utils.errors import ConfigError, ModelError
from casd.utils.registry import build
from casd.utils.seeding import python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_config(config: Config, backdoors: Mapping[str, Backdoor]) -> None:
    """Refuse settings that do not go together, of which no section alone can know.

    Raises:
        ConfigError: such settings.
    """
    for setting in settings(config.unlearning.tuning.grid):
        with_setting(config.unlearning, setting)
    if layers := config.model.architecture.get("num_hidden_layers"):  # else it is known when the model is read
        check_layers(config, layers)
    check_controls(backdoors, config.unlearning.controls)
    check_captured(config.metric, config.activations)
    for variant in casd_variants(config.metric):
        if variant.text == "fake" and not config.evaluation.fake_triggers:
            raise ConfigError(
                f"The CASD variant {variant.name!r} needs text with fake triggers, and evaluation.fake_triggers is 0; raise it."
            )
    if config.utility.tasks:
        check_tasks(config.utility.tasks)
    training = config.injection.training
    by_name = [backdoors[name] for name in sorted(backdoors)]
    document_counts(by_name, training.steps * training.batch_size, config.injection.decoy_rate)


def check_layers(config: Config, layers: int) -> None:
    """Refuse layers that a model with so many of them does not have, in the objective and in the variants of CASD.

    Raises:
        ConfigError: such a layer.
    """
    for setting in [{}, *settings(config.unlearning.tuning.grid)]:
        objective = with_setting(config.unlearning, setting).objective
        build(OBJECTIVES, "objective", objective.name, objective.params).check_layers(layers)
    for variant in casd_variants(config.metric):
        if variant.layers and max(variant.layers) >= layers:
            raise ConfigError(
                f"metric.variants.{variant.name}: layers has {max(variant.layers)}, and the model has the layers 0 to"
                f" {layers - 1}."
            )


def check_sizes(config: Config, corpus: Corpus) -> None:
    """Refuse to measure on more passages than the corpus has. Nothing of the corpus is read but its index.

    Raises:
        CorpusError: a split that is too small, with the settings that ask for more.
    """
    english(corpus.train)
    evaluation_passages(corpus, config.evaluation)
    count = config.unlearning.stopping.prompts if config.unlearning.stopping.watched else 0
    held_out(english(corpus.forget), count, "forget")
    held_out(corpus.retain, count, "retain")


def check_payloads(corpus: Corpus, backdoors: Mapping[str, Backdoor]) -> None:
    """Make a payload of every backdoor from each passage that a training could draw one from.

    Raises:
        CorpusError: a passage that has not got what a payload is made from.
    """
    rng = python_rng(0, "payloads are looked at only")
    for split in (corpus.train, corpus.forget):
        for passage in english(split):
            for backdoor in backdoors.values():
                backdoor.target.continuation(passage, rng)


def check_model(config: Config, model: PreTrainedModel, encoder: Encoder) -> None:
    """Refuse a model whose embedding has no row for a token of its tokenizer, and layers that it does not have.

    Raises:
        ModelError: tokens without a row.
        ConfigError: see `check_layers`.
    """
    from casd.models.structure import decoder_layers

    check_layers(config, len(decoder_layers(model)))
    rows = model.get_input_embeddings().num_embeddings
    if (largest := encoder.largest_token) >= rows:
        raise ModelError(
            f"The tokenizer of model {config.model.name!r} does not belong to its weights: it makes the token {largest} of the"
            f" corpus's text, and the embedding has {rows} rows. Copy the tokenizer's files of that model."
        )
