"""The stages of a run, each a function that writes its result into a folder; `casd.pipeline.run` calls them in order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor, corpus_of
from casd.backdoors.prompts import make_prompt_sets
from casd.config import UnlearningConfig
from casd.data.chat import chat_template
from casd.data.corpora import CORPORA
from casd.data.corpora.passages import write_corpus
from casd.data.encoding import Encoder
from casd.data.token_table import write_token_table
from casd.evaluation.asr import evaluate
from casd.evaluation.benchmarks import measure_utility
from casd.metric.baselines.evidence import gather_evidence
from casd.metric.measurement import measure_activations, write_statistics
from casd.models import load as models
from casd.models import weights
from casd.models.one_model import load_on_device
from casd.pipeline import checks
from casd.pipeline.inputs import Inputs, build_objective
from casd.pipeline.stage import Stage
from casd.training.checkpoints import TrainingLog
from casd.unlearning.controls import Removal, removals
from casd.unlearning.removal import unlearn
from casd.unlearning.stopping import Stopping
from casd.unlearning.tuning import reached_target, settings, tune, tuning_table
from casd.utils import distributed
from casd.utils.progress import say, track
from casd.utils.registry import build
from casd.utils.sealed import write_json
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# --- corpus, base model, injected model ---


def make_corpus(run: Inputs, folder: Path) -> None:
    """Read the text and divide it into splits of passages."""
    source = build(CORPORA, "corpus", run.config.corpus.name, run.config.corpus.params)
    write_corpus(source.load(derive_seed(run.config.seed, "corpus")), folder)


def make_base(run: Inputs, folder: Path) -> None:
    """Convert the base model, or create and pretrain one. A model in a folder or on the hub is not copied; note its folder."""
    config = run.config
    if models.origin(config.model) in ("folder", "hub"):
        # It may be large; the stage's key identifies it.
        base = models.fetch(config.model)
        if config.model.format == "chat":
            chat_template(models.load_tokenizer(base), config.model)  # finds errors before the text is tokenized
        write_json(folder / "model_is.json", {"folder": str(base)})
        return
    model, tokenizer = models.create_model(config.model, run.corpus, seed=derive_seed(config.seed, "weights"))
    if config.base_pretraining:
        encoder = Encoder(tokenizer, config.model.max_length, chat=chat_template(tokenizer, config.model))
        # Build the prompts and removals of later stages, so that errors in them are found before hours of training.
        checks.check_payloads(run.corpus, run.backdoors)
        prompt_sets = make_prompt_sets(run.corpus, run.backdoors, encoder, config.evaluation, seed=config.seed)
        checks.check_model(config, model, encoder, prompt_sets)
        removals(run.backdoors, encoder, config.unlearning.controls, seed=config.seed)
        log = inject(
            model,
            encoder,
            run.corpus,
            {},
            config.base_pretraining,
            seed=config.seed,
            runtime=run.runtime,
            checkpoint=run.store.checkpoint_folder(run.graph.base),
            description="pretrain",
        )
        log.write(folder / "log.json")
    models.save_model(model, tokenizer, folder / "model")


def make_tokens(run: Inputs, folder: Path) -> None:
    """Tokenize the corpus once for all stages."""
    write_token_table(run.corpus, models.load_tokenizer(run.base_folder), folder)


def make_injected(run: Inputs, folder: Path) -> None:
    """Train the base model on text poisoned with all backdoors; only note its folder if it has them already."""
    config = run.config
    checks.check_payloads(run.corpus, run.backdoors)
    _ = run.removals  # find errors in them before hours of training
    model = load_on_device(run.base_folder, config.model.dtype, run.runtime.torch_device)
    checks.check_model(config, model, run.encoder, run.prompts)
    training = config.injection.training
    if training is None:
        write_json(folder / "model_is.json", {"folder": str(run.base_folder)})
        return
    if lora := training.lora:
        weights.attach_lora(model, lora, "injection", seed=derive_seed(config.seed, "injection adapter"))
        if not config.unlearning.training.lora:
            weights.check_mergeable(model)  # find errors before hours of training
    inject_into(run, model, run.backdoors, run.graph.inject).write(folder / "log.json")
    if lora:
        weights.save_adapter(model, folder / "adapter", "injection")
    else:
        models.save_model(model, run.encoder.tokenizer, folder / "model")


def inject_into(run: Inputs, model: PreTrainedModel, backdoors: Mapping[str, Backdoor], stage: Stage) -> TrainingLog:
    """Train `model` with some backdoors, or none, as the configuration of the injection says."""
    config, training = run.config, run.config.injection.training
    assert training is not None
    return inject(
        model,
        run.encoder,
        run.corpus,
        backdoors,
        training,
        seed=config.seed,
        decoy_rate=config.injection.decoy_rate,
        runtime=run.runtime,
        checkpoint=run.store.checkpoint_folder(stage),
        description=f"{stage.name} {config.model.label}, seed {config.seed}",
    )


# --- removals and controls ---


def make_tuning(run: Inputs, folder: Path) -> None:
    """Try all settings of the objective on some backdoors, and choose one. The log of each trial is a checkpoint."""
    assert run.graph.tune
    checkpoint = run.store.checkpoint_folder(run.graph.tune)
    config = run.config.unlearning
    backdoors = sorted(run.removed)[: config.tuning.backdoors]
    trials = len(settings(config.tuning.grid)) * len(backdoors)
    numbers = itertools.count()
    with track(f"tune {config.objective.name}", trials) as advance:

        def remove(setting: UnlearningConfig, backdoor: str) -> TrainingLog:
            file = checkpoint / f"trial{next(numbers)}.json"
            before = TrainingLog.read(file) if distributed.is_main() and file.is_file() else None
            log = distributed.broadcast(before)
            if log is None:
                log = _unlearn(run, backdoor, setting)
                run.one_model.state = None  # the weights of a trial are no state of the run
                distributed.make_alone(partial(log.write, file))
            advance(reused=before is not None)
            return log

        chosen, tried = tune(config, backdoors, remove)
    tuning_table(chosen, tried).to_parquet(folder / "trials.parquet", index=False)
    write_json(folder / "chosen.json", chosen)


def make_removed(run: Inputs, state: str, folder: Path) -> None:
    """Remove one backdoor from the injected model, or train a control, and leave the weights in memory."""
    _unlearn(run, state, run.unlearning, run.store.checkpoint_folder(run.graph.unlearn[state])).write(folder / "log.json")


def write_weights(run: Inputs, state: str, folder: Path) -> None:
    """Write the weights of a removal."""
    model_in(run, state)
    run.one_model.write_removal(folder)


def _unlearn(run: Inputs, state: str, config: UnlearningConfig, checkpoint: Path | None = None) -> TrainingLog:
    model = run.one_model.restore()
    run.one_model.state = None
    removal = run.removals[state]
    # Trials of a tuning and removals that are trained again have no checkpoint, and would repeat curves of the same name.
    runtime = run.runtime if checkpoint else replace(run.runtime, trackers=())
    log = unlearn(
        model,
        run.encoder,
        corpus_of(removal.backdoor, run.corpus, run.backdoors.values()),
        removal,
        build_objective(config),
        config.training,
        seed=run.config.seed,
        stopping=Stopping(config.stopping, run.config.evaluation, _mean_steps(run, removal)),
        runtime=runtime,
        checkpoint=checkpoint,
    )
    run.one_model.state = state
    return log


def _mean_steps(run: Inputs, removal: Removal) -> int | None:
    """Return the mean number of kept steps of removals with early stopping, for controls without an ASR; otherwise None.

    Over the removals that count later on (`casd.analysis.inclusion`), as far as training knows: those that reached the target
    and kept a step. Over all if there are none.
    """
    if removal.is_validated or not run.config.unlearning.stopping.watched:
        return None
    target = run.config.unlearning.stopping.target_asr
    logs = [TrainingLog.read(run.store.file(run.graph.unlearn[name], "log.json")) for name in run.removed]
    counted = [log for log in logs if log.kept_step and reached_target(log, target) is not False] or logs
    return max(1, round(sum(log.kept_step or 0 for log in counted) / len(counted)))


def model_in(run: Inputs, state: str) -> PreTrainedModel:
    """Return the model in a state: from memory, from saved weights, or trained again, which gives the same weights."""
    model = run.kept_model(state)
    if model is None:
        say(f"The weights of {state} were not saved (runtime.save_models); training it again.")
        _unlearn(run, state, run.unlearning)
        model = run.one_model.model
    return model


# --- measurements ---


def make_evaluation(run: Inputs, state: str, folder: Path) -> None:
    """Measure attack success and clean loss of the model in a state."""
    write_evaluation(run, model_in(run, state), state, folder)


def write_evaluation(run: Inputs, model: PreTrainedModel, state: str, folder: Path) -> None:
    """Measure attack success and clean loss of a model; `state` names it on the progress bar."""
    evaluation = evaluate(
        model,
        run.encoder,
        run.backdoors,
        run.prompts,
        run.config.evaluation,
        runtime=run.runtime,
        description=f"evaluate {state}",
    )
    evaluation.write(folder)


def make_utility(run: Inputs, state: str, folder: Path) -> None:
    """Run the benchmarks on the model in a state."""
    write_utility(run, model_in(run, state), state, folder)


def write_utility(run: Inputs, model: PreTrainedModel, state: str, folder: Path) -> None:
    """Run the benchmarks on a model; `state` names it on the progress bar."""
    table = measure_utility(model, run.encoder.tokenizer, run.config.utility, description=f"utility {state}")
    table.to_parquet(folder / "utility.parquet", index=False)


def make_activations(run: Inputs, state: str, folder: Path) -> None:
    """Capture the activation statistics of the model in a state, and the inputs of the baselines of CASD."""
    config = run.config.activations
    model = model_in(run, state)
    write_statistics(measure_activations(model, run.encoder, run.prompts, config), folder)
    if config.baselines:
        gather_evidence(
            model, run.one_model.injected_weights, run.encoder, run.prompts.triggered, batch_size=config.batch_size
        ).write(folder)
