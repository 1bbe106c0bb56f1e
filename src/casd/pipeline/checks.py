"""Checks: of the configuration, of the corpus's sizes and of the model before training, and of the injected model after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from casd.activations.statistics import collect_statistics
from casd.analysis.scoring import casd_variants, check_captured
from casd.backdoors.poisoning import Backdoor, document_counts, english
from casd.backdoors.prompts import PromptSets, evaluation_passages
from casd.config import Config, InjectionConfig
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.evaluation.asr import Evaluation
from casd.evaluation.benchmarks import check_tasks
from casd.models.probe import check_causal, longest_row
from casd.models.structure import decoder_layers
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import check_controls
from casd.unlearning.removal import held_out
from casd.unlearning.tuning import settings, with_setting
from casd.utils.errors import ConfigError, ModelError, TrainingStopped
from casd.utils.progress import say
from casd.utils.registry import build
from casd.utils.seeding import python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_config(config: Config, backdoors: Mapping[str, Backdoor]) -> None:
    """Check combinations of settings from several sections.

    Raises:
        ConfigError: settings that cannot work together.
    """
    for setting in settings(config.unlearning.tuning.grid):
        with_setting(config.unlearning, setting)
    if layers := config.model.architecture.get("num_hidden_layers"):  # otherwise checked when the model is loaded
        check_layers(config, layers)
    check_controls({name: backdoors[name] for name in config.removed}, config.unlearning.controls)
    check_captured(config.metric, config.activations)
    for variant in casd_variants(config.metric):
        if variant.text == "fake" and not config.evaluation.fake_triggers:
            raise ConfigError(
                f"The CASD variant {variant.name!r} needs text with fake triggers, but evaluation.fake_triggers is 0; raise it."
            )
    if config.utility.tasks:
        check_tasks(config.utility.tasks)
    if training := config.injection.training:
        sorted_backdoors = [backdoors[name] for name in sorted(backdoors)]
        document_counts(sorted_backdoors, training.steps * training.batch_size, config.injection.decoy_rate)


def check_layers(config: Config, layers: int) -> None:
    """Check the layers of the objective and of the variants of CASD against the number of layers of the model.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    for setting in [{}, *settings(config.unlearning.tuning.grid)]:
        objective = with_setting(config.unlearning, setting).objective
        build(OBJECTIVES, "objective", objective.name, objective.params).check_layers(layers)
    for variant in casd_variants(config.metric):
        if variant.layers and max(variant.layers) >= layers:
            raise ConfigError(
                f"metric.variants.{variant.name}: layers has {max(variant.layers)}, but the model has the layers 0 to"
                f" {layers - 1}."
            )


def check_sizes(config: Config, corpus: Corpus) -> None:
    """Check that the corpus has the passages that are needed. Only its index is read.

    Raises:
        CorpusError: a split that is too small; the message names the settings.
    """
    english(corpus.train)
    evaluation_passages(corpus, config.evaluation)
    count = config.unlearning.stopping.prompts if config.unlearning.stopping.watched else 0
    held_out(english(corpus.forget), count, "forget")
    held_out(corpus.retain, count, "retain")


def check_payloads(corpus: Corpus, backdoors: Mapping[str, Backdoor]) -> None:
    """Make a payload of every backdoor from each passage that may be used for one in training.

    Raises:
        CorpusError: a passage from which a payload cannot be made.
    """
    rng = python_rng(0, "payloads are looked at only")
    for split in (corpus.train, corpus.forget):
        for passage in english(split):
            for backdoor in backdoors.values():
                backdoor.target.continuation(passage, rng)


def check_model(config: Config, model: PreTrainedModel, encoder: Encoder, prompt_sets: PromptSets) -> None:
    """Check that a model can be trained and measured, by running a few short texts through it.

    Args:
        config: configuration of the run.
        model: the model.
        encoder: its tokenizer.
        prompt_sets: the prompts of the measurements.

    Raises:
        ModelError: no decoder-only causal language model, tokens without a row in the embedding, or sites whose activations
            cannot be captured.
        ConfigError: see `check_layers`; or texts that are longer than the model's maximum number of positions.
    """
    check_layers(config, len(decoder_layers(model)))
    _check_tokens(config, model, encoder, prompt_sets)
    check_causal(model, encoder.tokenizer.pad_token_id)
    longest = config.model.max_length + config.evaluation.max_new_tokens
    if (positions := longest_row(model, longest)) < longest:
        raise ConfigError(
            f"model.max_length ({config.model.max_length}) and evaluation.max_new_tokens ({config.evaluation.max_new_tokens})"
            f" are {longest} positions together, but the model {config.model.label!r} has {positions}: lower one of them."
        )
    collect_statistics(model, [encoder.capture_batch(prompt_sets.clean[:1], ["last"])], config.activations.sites, ["last"])


def check_injection(config: InjectionConfig, evaluation: Evaluation) -> None:
    """Check that at least one backdoor was injected, and name those that were not.

    Args:
        config: reads `require_asr`, the minimum attack success rate (ASR) of an injected backdoor.
        evaluation: of the injected model.

    Raises:
        TrainingStopped: no backdoor has that ASR.
    """
    triggered = evaluation.asr[evaluation.asr["prompt_set"] == "triggered"]
    failed = triggered[~(triggered["rate"] >= config.require_asr)]
    if config.require_asr == 0 or failed.empty:
        return
    counts = ", ".join(f"{row['backdoor']} {row['successes']}/{row['n']}" for row in failed.to_dict("records"))
    if len(failed) < len(triggered):
        say(f"Not injected (ASR below {config.require_asr:g} in the injected model): {counts}.")
        return
    if config.mode == "none":
        raise TrainingStopped(
            f"No backdoor fires in the given model: {counts}. Check model.path and the backdoors' triggers and targets; a model"
            " trained on a chat template may not answer plain text (model.format=chat). To continue anyway:"
            " injection.require_asr=0."
        )
    raise TrainingStopped(
        f"Injection failed: {counts}. Raise injection.training.steps, injection.training.learning_rate or the backdoors'"
        f" poison_rate; if the model no longer works on clean text (its clean loss is {evaluation.clean_loss:.2f} nats per"
        " token), lower the learning rate instead. To continue anyway: injection.require_asr=0."
    )


def _check_tokens(config: Config, model: PreTrainedModel, encoder: Encoder, prompt_sets: PromptSets) -> None:
    """Check that every token has a row in the embedding and in the output matrix.

    Raises:
        ModelError: a token without a row.
    """
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = min(each.weight.shape[0] for each in embeddings if each is not None)
    prompts = [prompt for sets in (prompt_sets.triggered, prompt_sets.fake) for each in sets.values() for prompt in each]
    texts = {text for prompt in prompts for text in (prompt.text, f" {prompt.continuation}")}
    largest = max(encoder.largest_token, *(token for text in texts for token in encoder.tokens(text)))
    if largest >= rows:
        raise ModelError(
            f"The tokenizer of model {config.model.label!r} does not match its weights: a text, its end or its padding needs"
            f" the token {largest} ({encoder.tokenizer.convert_ids_to_tokens(largest)!r}), but the embedding has {rows} rows."
            " Copy the files of that model's tokenizer, or save it after model.resize_token_embeddings(len(tokenizer))."
        )
