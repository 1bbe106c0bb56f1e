"""The stages of persistence: a model that never had a backdoor, and what comes back in the states of the model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from casd.analysis.tables import PERSISTENCE
from casd.config.states import removed_backdoor
from casd.models import weights
from casd.models.one_model import load_on_device
from casd.pipeline.inputs import Inputs
from casd.pipeline.stages import inject_into, model_in
from casd.unlearning.persistence import Persistence, treatments
from casd.utils.seeding import derive_seed


def make_clean_model(run: Inputs, folder: Path) -> None:
    """Train the base model as the injection does, on clean text and decoys only: the control of `make_persistence`."""
    config, lora, stage = run.config, run.config.injection.lora, run.graph.clean_model
    assert stage is not None
    vars(run).pop("one_model", None)  # so that there is one model in memory
    model = load_on_device(run.base_folder, config.model.dtype, run.runtime.torch_device)
    if lora:
        weights.attach_lora(model, lora, "injection", seed=derive_seed(config.seed, "injection adapter"))
    inject_into(run, model, {}, stage).write(folder / "log.json")
    if lora:
        weights.merge_adapters(model)
    weights.save_removal(model, folder / "weights.safetensors")


def make_persistence(run: Inputs, state: str, folder: Path) -> None:
    """Treat the model in a state, measure what comes back, and do the same to the model without backdoors."""
    config, section, own = run.config, run.config.persistence, removed_backdoor(state)
    model = model_in(run, state)
    training = config.unlearning.training
    bench = Persistence(
        model=model,
        encoder=run.encoder,
        corpus=run.corpus,
        backdoors=run.backdoors,
        prompts=run.prompts,
        config=section,
        evaluation=config.evaluation,
        training=replace(training, learning_rate=section.learning_rate or training.learning_rate),
        reserved=config.unlearning.stopping.prompts if config.unlearning.stopping.watched else 0,
        seed=config.seed,
        runtime=replace(run.runtime, trackers=()),
    )
    sources, watched = section.sources(own, run.backdoors), [own] if own else []
    kept, injected = weights.copy_weights(model), run.one_model.injected_weights
    run.one_model.state = None
    restore = partial(weights.restore_weights, model, kept)
    tables = [bench.measure(treatments(section, sources), watched, restore).assign(model="state")]
    if sources and run.graph.clean_model:
        file = run.store.file(run.graph.clean_model, "weights.safetensors")
        load = partial(weights.load_removal, model, file, injected=injected)
        load()
        tables.append(bench.measure(treatments(section, sources, control=True), watched, load).assign(model="clean"))
    restore()
    run.one_model.state = state
    table = pd.concat(tables, ignore_index=True).assign(state=state)
    table[list(PERSISTENCE)].to_parquet(folder / "persistence.parquet", index=False)
