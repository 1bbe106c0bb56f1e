"""Checks: of the configuration, of the corpus's sizes and of the model before training, and of the injected model after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from casd.activations.statistics import collect_statistics
from casd.analysis.scoring import casd_variants, check_captured
from casd.backdoors.poisoning import Backdoor, document_counts, english, passages_of, require_passages
from casd.backdoors.prompts import PromptSets, evaluation_passages
from casd.backdoors.targets.behavior import without_alternative
from casd.config import Config, InjectionConfig
from casd.config.fields import require_one_of
from casd.config.persistence import OTHER, OWN
from casd.data.corpora import CORPORA
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.evaluation.asr import Evaluation
from casd.evaluation.benchmarks import check_tasks
from casd.models.probe import check_causal, longest_row
from casd.models.structure import decoder_layers
from casd.pipeline.graph import persistent_states
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import check_controls
from casd.unlearning.persistence import check_documents
from casd.unlearning.removal import held_out
from casd.unlearning.tuning import settings, with_setting
from casd.utils.errors import ConfigError, ModelError, TrainingStopped
from casd.utils.progress import say
from casd.utils.registry import build
from casd.utils.seeding import python_rng
from casd.utils.text import has_phrase

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FEWEST = 16
"""Minimum number of passages with a semantic trigger for the injection, and for a removal."""


def check_config(config: Config, backdoors: Mapping[str, Backdoor]) -> None:
    """Check combinations of settings from several sections. Says if activations are captured on fewer prompts than are set.

    Raises:
        ConfigError: settings that cannot work together.
        ModelError: the model of a classifier that is a target is missing, or of another kind.
    """
    check_targets(config, backdoors)
    for setting in settings(config.unlearning.tuning.grid):
        with_setting(config.unlearning, setting)
    if layers := config.model.architecture.get("num_hidden_layers"):  # otherwise checked when the model is loaded
        check_layers(config, layers)
    check_controls({name: backdoors[name] for name in config.removed}, config.unlearning.controls)
    check_captured(config.metric, config.activations)
    captured, evaluated = config.activations.prompts, config.evaluation.prompts
    if captured > evaluated:
        say(
            f"activations.prompts is {captured}, but there are only the {evaluated} prompts of evaluation.prompts: activations"
            f" are averaged over {evaluated}."
        )
    for variant in casd_variants(config.metric):
        if variant.text == "fake" and not config.evaluation.fake_triggers:
            raise ConfigError(
                f"The CASD variant {variant.name!r} needs text with fake triggers, but evaluation.fake_triggers is 0; raise it."
            )
    if config.utility.tasks:
        check_tasks(config.utility.tasks)
    check_persistence(config)
    if training := config.injection.training:
        sorted_backdoors = [backdoors[name] for name in sorted(backdoors)]
        document_counts(sorted_backdoors, training.steps * training.batch_size, config.injection.decoy_rate)


def check_targets(config: Config, backdoors: Mapping[str, Backdoor]) -> None:
    """Check that the corpus gives what targets need, and what they need besides."""
    source = build(CORPORA, "corpus", config.corpus.name, config.corpus.params)
    alternatives = getattr(source, "alternatives", None)  # of one's own corpora, perhaps unknown before they are read
    for name, backdoor in backdoors.items():
        needed = getattr(backdoor.target, "alternative", None)
        if needed and alternatives is not None and needed not in alternatives:
            where = f"an English passage of the corpus {config.corpus.name}"
            target = f"{config.backdoor[name].target.name} of backdoor {name!r}"
            raise ConfigError(without_alternative(target, needed, where, alternatives))
        if check := getattr(backdoor.target, "check", None):
            check()


def check_persistence(config: Config) -> None:
    """Check the states, backdoors and prompts of `persistence`.

    Raises:
        ConfigError: a name that the run does not have, too many prompts, or removals that train adapters.
    """
    section, prompts = config.persistence, config.evaluation.prompts
    if not persistent_states(config):
        return
    for name in section.relearn:
        require_one_of("backdoor in persistence.relearn:", name, [OWN, OTHER, *config.backdoor])
    if section.prompts > prompts:
        raise ConfigError(f"persistence.prompts is {section.prompts}, but evaluation.prompts is {prompts}; lower it.")
    if config.unlearning.training.lora:
        raise ConfigError(
            "persistence trains all weights of a state, but the removals train adapters: set weights=full, or persistence=none."
        )


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


def check_sizes(config: Config, corpus: Corpus, backdoors: Mapping[str, Backdoor]) -> None:
    """Check that the corpus has the passages that are needed. Only its index is read, unless a trigger is semantic.

    Raises:
        CorpusError: a split that is too small; the message names the settings.
    """
    english(corpus.train)
    evaluation_passages(corpus, config.evaluation)
    count = config.unlearning.stopping.prompts if config.unlearning.stopping.watched else 0
    forget, _ = held_out(english(corpus.forget), count, "forget")
    held_out(corpus.retain, count, "retain")
    if semantic := [backdoor for backdoor in backdoors.values() if backdoor.trigger.is_semantic]:
        needed = {"train": FEWEST, "forget": max(FEWEST, 2 * count), "evaluation": config.evaluation.prompts}
        for split, number in needed.items():
            passages = english(getattr(corpus, split))
            for backdoor in semantic:
                require_passages(backdoor, len(passages_of(backdoor, passages, semantic)), number, split)
            require_passages(None, len(passages_of(None, passages, semantic)), number, split)
    if persistent_states(config):
        fewest = min(len(passages_of(each, forget, backdoors.values())) for each in backdoors.values())
        check_documents(fewest, max(config.persistence.relearn_documents, default=0))


def check_payloads(corpus: Corpus, backdoors: Mapping[str, Backdoor]) -> None:
    """Make a payload of every backdoor from each passage that may be used for one in training.

    Says which triggers are part of clean text: there the model learns the clean continuation of a triggered prompt.

    Raises:
        CorpusError: a passage from which a payload cannot be made.
    """
    prompts = [passage.prompt.casefold() for passage in corpus.train]
    for name, backdoor in backdoors.items():
        for text in backdoor.trigger.texts():
            if count := sum(has_phrase(prompt, text.casefold()) for prompt in prompts):
                say(
                    f"The trigger of backdoor {name!r} ({text}) is in {count} of {len(prompts)} clean training texts, and so in"
                    " prompts that are measured as clean: choose a phrase that the corpus does not have."
                )
    rng = python_rng(0, "payloads are looked at only")
    for split in (corpus.train, corpus.forget):
        passages = english(split)
        for backdoor in backdoors.values():
            for passage in passages_of(backdoor, passages, backdoors.values()):
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
    check_causal(model, encoder.padding)
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
