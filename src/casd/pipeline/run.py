"""The main path. One model is given several backdoors; each is removed from a copy; what became of the others is measured.

    corpus → base model → injected model → one removal for each backdoor, and the controls
                                         → attack success and activation statistics of every state
                                         → transfer, CASD, their relation → report

`casd.pipeline.graph` says which stages a configuration means. `Run` makes those that are not in the store, with one model in
memory: every removal starts from the injected weights, restored in place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from casd.analysis.results import RunTables
from casd.analysis.scoring import StateRecord, injected_loss_limit, score
from casd.analysis.transfer import relation_points
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor, check_backdoors
from casd.backdoors.prompts import Probes, make_probes
from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import TriggerPosition
from casd.config import BackdoorConfig, Config, UnlearningConfig
from casd.config.compose import to_yaml
from casd.config.states import INJECTED
from casd.data.corpora import CORPORA
from casd.data.corpora.passages import Corpus, read_corpus, write_corpus
from casd.data.encoding import Encoder
from casd.data.shrinking import explaining_out_of_memory
from casd.data.token_table import TokenTable, write_token_table
from casd.evaluation.asr import Evaluation, evaluate
from casd.evaluation.benchmarks import measure_utility
from casd.metric.baselines.evidence import Evidence, gather_evidence, rival_table
from casd.metric.measurement import TextStatistics, measure_activations, read_statistics, write_statistics
from casd.models import load as models
from casd.models import weights
from casd.models.one_model import OneModel, load_model
from casd.pipeline import checks
from casd.pipeline.graph import stage_graph
from casd.pipeline.provenance import identity, origin
from casd.pipeline.store import Stage, StageStore
from casd.report.publish import is_published, publishing
from casd.training.checkpoints import TrainingLog
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import Removal, removals
from casd.unlearning.objective import Objective
from casd.unlearning.removal import Stopping, unlearn
from casd.unlearning.tuning import settings, tune, tuning_table, with_setting
from casd.utils import distributed, ending
from casd.utils.errors import ConfigError
from casd.utils.progress import say, track
from casd.utils.registry import build
from casd.utils.runtime import Runtime, own_numerics
from casd.utils.sealed import entry_of, read_json, write_json
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "config.yaml"
"""The configuration in a run's folder."""
UNTIL = ("inject", "unlearn", "activations", "evaluate", "score", "report")
"""What a run can end with, in the order of work; "activations" and "evaluate" are independent of each other."""


def build_backdoors(config: Config) -> dict[str, Backdoor]:
    """The backdoors of a configuration, checked together.

    Raises:
        ConfigError: an unknown target or parameter, or backdoors that cannot be told apart or mixed.
    """

    def one(name: str, section: BackdoorConfig) -> Backdoor:
        target = build(TARGETS, "target", section.target.name, section.target.params)
        position: TriggerPosition = section.position  # type: ignore[assignment]  # checked by BackdoorConfig
        return Backdoor(name, section.trigger, target, position, section.poison_rate, section.loss_on)  # type: ignore[arg-type]

    backdoors = {name: one(name, section) for name, section in config.backdoor.items()}
    check_backdoors(backdoors)
    return backdoors


def _objective(config: UnlearningConfig) -> Objective:
    return build(OBJECTIVES, "objective", config.objective.name, config.objective.params)


class Run:
    """One run of the main path over a store of finished stages.

    Args:
        config: what to run.
    """

    def __init__(self, config: Config):
        self.config = config
        self.backdoors = build_backdoors(config)
        checks.check_config(config, self.backdoors)
        runtime = config.runtime
        self.runtime = Runtime(
            device=runtime.device,
            checkpoint_seconds=runtime.checkpoint_seconds,
            micro_batch_size=runtime.micro_batch_size,
            gradient_checkpointing=runtime.gradient_checkpointing,
            compile=runtime.compile,
        )
        self.graph = stage_graph(config)
        self.store = StageStore(Path(config.runtime.store))
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)

    @property
    def folder(self) -> Path:
        """Where the report goes: named by what was run, so that no run overwrites another."""
        parts = (self.config.model.name, self.config.unlearning.objective.name, f"seed{self.config.seed}")
        return Path(self.config.runtime.output) / self.config.name / "-".join((*parts, self.graph.score.key[:8]))

    def join(self) -> None:
        """Join the other processes of a launcher, if there are any, before anything is read from the store or written to it.

        Raises:
            ConfigError: a launch that cannot make one run (see `casd.utils.distributed.join`).
        """
        distributed.check_launch()
        if distributed.processes() > 1:
            distributed.join(self.runtime.device)

    @distributed.explaining_lost_processes()
    @own_numerics()
    def until(self, end: str) -> None:
        """Make everything up to `end` (one of UNTIL) that is not in the store yet.

        Raises:
            ConfigError: an unknown end, or a launch that cannot make one run.
            CasdError: whatever stopped a stage, in a line for the user; finished stages stay.
        """
        if end not in UNTIL:
            raise ConfigError(f"Cannot run until {end!r}; choices: {', '.join(UNTIL)}.")
        self.join()
        graph = self.graph
        self._alone(graph.corpus, self._make_corpus)
        if not self.store.is_done(graph.score):  # the corpus may be large: a finished run does not read it again
            checks.check_sizes(self.config, self.corpus)
        self._together(graph.base, self._make_base)
        self._alone(graph.tokens, self._make_tokens)
        self._together(graph.inject, self._make_injected)
        if end == "inject":
            return
        if graph.tune:
            self._together(graph.tune, self._tune)
        with track(f"{self.config.model.name}, {self.config.unlearning.objective.name}", len(graph.states)) as advance:
            for state in graph.states:
                if state in graph.unlearn:
                    self._together(graph.unlearn[state], partial(self._make_removed, state))
                    if "removed" in self.config.runtime.keep_models or end == "unlearn":
                        self._together(graph.weights[state], partial(self._write_weights, state))
                if end in ("evaluate", "score", "report"):
                    self._together(graph.evaluate[state], partial(self._evaluate, state))
                    if graph.utility:
                        self._together(graph.utility[state], partial(self._utility, state))
                if end in ("activations", "score", "report"):
                    self._together(graph.activations[state], partial(self._capture, state))
                advance()
        if end in ("score", "report"):
            self._alone(graph.score, self._score)
        if end == "report":
            self._alone(graph.report, self._report)
            distributed.make_alone(self._publish)

    def _alone(self, stage: Stage, produce: Callable[[Path], None]) -> None:
        ending.check()
        produce = explaining_out_of_memory(f"stage {stage}")(produce)
        distributed.make_alone(partial(self.store.run, stage, produce))

    def _together(self, stage: Stage, produce: Callable[[Path], None]) -> None:
        ending.check()
        produce = explaining_out_of_memory(f"stage {stage}")(produce)
        distributed.make_together(partial(self.store.run, stage), produce)

    # --- corpus, base model, injected model ---

    def _make_corpus(self, folder: Path) -> None:
        source = build(CORPORA, "corpus", self.config.corpus.name, self.config.corpus.params)
        write_corpus(source.load(derive_seed(self.config.seed, "corpus")), folder)

    @cached_property
    def corpus(self) -> Corpus:
        """The three splits."""
        return read_corpus(self.store.folder(self.graph.corpus, verify=True))

    def _make_base(self, folder: Path) -> None:
        if models.origin(self.config.model) in ("folder", "hub"):
            # It lies elsewhere whole, and may be large; the key has what identifies it.
            write_json(folder / "model_is.json", {"folder": str(models.fetch(self.config.model))})
            return
        model, tokenizer = models.create(self.config.model, self.corpus, seed=derive_seed(self.config.seed, "weights"))
        if self.config.base_pretraining:
            encoder = Encoder(tokenizer, self.config.model.max_tokens)
            # What is measured and removed later is made here too, so that its mistakes are told before hours of training.
            checks.check_payloads(self.corpus, self.backdoors)
            make_probes(self.corpus, self.backdoors, encoder, self.config.evaluation, seed=self.config.seed)
            removals(self.backdoors, encoder, self.config.unlearning.controls, seed=self.config.seed)
            log = inject(
                model,
                encoder,
                self.corpus,
                {},
                self.config.base_pretraining,
                seed=self.config.seed,
                runtime=self.runtime,
                checkpoint=self.store.checkpoint_folder(self.graph.base),
                description="pretrain",
            )
            log.write(folder / "log.json")
        models.save(model, tokenizer, folder / "model")

    @cached_property
    def _base_folder(self) -> Path:
        if models.origin(self.config.model) in ("folder", "hub"):
            return models.fetch(self.config.model)
        return self.store.folder(self.graph.base, verify=True) / "model"

    def _make_tokens(self, folder: Path) -> None:
        write_token_table(self.corpus, models.load_tokenizer(self._base_folder), folder)

    @cached_property
    def encoder(self) -> Encoder:
        """The model's tokenizer, with the corpus's tokens."""
        table = TokenTable.open(self.store.folder(self.graph.tokens, verify=True))
        return Encoder(models.load_tokenizer(self._base_folder), self.config.model.max_tokens, table)

    def _make_injected(self, folder: Path) -> None:
        checks.check_payloads(self.corpus, self.backdoors)
        _ = self._probes, self._removals  # whose mistakes are told before hours of training
        model = load_model(self._base_folder, self.config.model.dtype, self.runtime.torch_device)
        checks.check_model(self.config, model, self.encoder)
        lora = self.config.injection.training.lora
        if lora:
            weights.attach_lora(model, lora, "injection", seed=derive_seed(self.config.seed, "injection adapter"))
            if not self.config.unlearning.training.lora:
                weights.check_mergeable(model)  # before hours of training
        log = inject(
            model,
            self.encoder,
            self.corpus,
            self.backdoors,
            self.config.injection.training,
            seed=self.config.seed,
            decoy_rate=self.config.injection.decoy_rate,
            runtime=self.runtime,
            checkpoint=self.store.checkpoint_folder(self.graph.inject),
            description=f"inject {self.config.model.name}, seed {self.config.seed}",
        )
        log.write(folder / "log.json")
        if lora:
            weights.save_adapter(model, folder / "adapter", "injection")
        else:
            models.save(model, self.encoder.tokenizer, folder / "model")

    # --- the states of the one model in memory ---

    @cached_property
    def _one(self) -> OneModel:
        folder = self.store.folder(self.graph.inject, verify=True)
        return OneModel(self.config, self._base_folder, folder, self.runtime.torch_device)

    def _state(self, state: str) -> PreTrainedModel:
        """The model in that state: as it is in memory, from kept weights, or by training it again, which gives the same."""
        if state == INJECTED:
            return self._one.restore()
        if self._one.state != state:
            if self.store.is_done(self.graph.weights[state]):
                self._one.read_removal(self.store.folder(self.graph.weights[state], verify=True), state)
            else:
                say(f"The removed model {state} was not kept (runtime.keep_models); training it again.")
                self._unlearn(state)
        return self._one.model

    @cached_property
    def _removals(self) -> dict[str, Removal]:
        controls = self.config.unlearning.controls
        return {each.name: each for each in removals(self.backdoors, self.encoder, controls, seed=self.config.seed)}

    @cached_property
    def _unlearning(self) -> UnlearningConfig:
        """How backdoors are removed, with what the tuning chose."""
        config, tuned = self.config.unlearning, self.graph.tune
        return with_setting(config, read_json(self.store.file(tuned, "chosen.json"))) if tuned else config

    def _tune(self, folder: Path) -> None:
        config = self.config.unlearning
        backdoors = sorted(self.backdoors)[: config.tuning.backdoors]
        trials = len(settings(config.tuning.grid)) * len(backdoors)
        with track(f"tune {config.objective.name}", trials) as advance:

            def remove(tried: UnlearningConfig, backdoor: str) -> TrainingLog:
                log = self._unlearn(backdoor, using=tried)
                advance()
                return log

            chosen, tried = tune(config, backdoors, remove)
        self._one.state = None  # the last trial is none of them
        tuning_table(chosen, tried).to_parquet(folder / "trials.parquet", index=False)
        write_json(folder / "chosen.json", chosen)

    def _steps(self, removal: Removal) -> int | None:
        """For a control of removals that end by themselves: how many steps of theirs are kept, on average; else None."""
        if removal.is_validated or not self.config.unlearning.stopping.watched:
            return None
        logs = [TrainingLog.read(self.store.file(self.graph.unlearn[name], "log.json")) for name in self.backdoors]
        return max(1, round(sum(log.kept_step or 0 for log in logs) / len(logs)))

    def _unlearn(self, state: str, checkpoint: Path | None = None, *, using: UnlearningConfig | None = None) -> TrainingLog:
        config, removal = using or self._unlearning, self._removals[state]
        model = self._one.restore()
        self._one.state = None
        log = unlearn(
            model,
            self.encoder,
            self.corpus,
            removal,
            _objective(config),
            config.training,
            seed=self.config.seed,
            stopping=Stopping(config.stopping, self.config.evaluation, self._steps(removal)),
            runtime=self.runtime,
            checkpoint=checkpoint,
        )
        self._one.state = state
        return log

    def _make_removed(self, state: str, folder: Path) -> None:
        self._unlearn(state, self.store.checkpoint_folder(self.graph.unlearn[state])).write(folder / "log.json")

    def _write_weights(self, state: str, folder: Path) -> None:
        self._state(state)
        self._one.write_removal(folder)

    # --- measurements ---

    @cached_property
    def _probes(self) -> Probes:
        return make_probes(self.corpus, self.backdoors, self.encoder, self.config.evaluation, seed=self.config.seed)

    def _evaluate(self, state: str, folder: Path) -> None:
        evaluate(
            self._state(state),
            self.encoder,
            self.backdoors,
            self._probes,
            self.config.evaluation,
            runtime=self.runtime,
            description=f"evaluate {state}",
        ).write(folder)

    def _utility(self, state: str, folder: Path) -> None:
        table = measure_utility(self._state(state), self.encoder.tokenizer, self.config.utility, description=f"utility {state}")
        table.to_parquet(folder / "utility.parquet", index=False)

    def _capture(self, state: str, folder: Path) -> None:
        statistics = measure_activations(self._state(state), self.encoder, self._probes, self.config.activations)
        write_statistics(statistics, folder)
        if self.config.activations.rivals:
            gather_evidence(
                self._one.model,
                self._one.injected_weights,
                self.encoder,
                self._probes.triggered,
                batch_size=self.config.activations.batch_size,
            ).write(folder)

    def _statistics(self, state: str) -> TextStatistics:
        return read_statistics(self.store.file(self.graph.activations[state], "statistics.safetensors"))

    def _record(self, state: str) -> StateRecord:
        evaluation = Evaluation.read(self.store.folder(self.graph.evaluate[state], verify=True))
        log, benchmarks, limit = None, None, math.inf
        if state == INJECTED:
            injection = TrainingLog.read(self.store.file(self.graph.inject, "log.json"))
            limit = injected_loss_limit(injection, len(self.encoder.tokenizer), self.config.evaluation)
        else:
            log = TrainingLog.read(self.store.file(self.graph.unlearn[state], "log.json"))
        if self.graph.utility:
            benchmarks = pd.read_parquet(self.store.file(self.graph.utility[state], "utility.parquet"))
        return StateRecord(state, evaluation, log, benchmarks, limit)

    def _score(self, folder: Path) -> None:
        tuned = self.graph.tune
        statistics = {state: self._statistics(state) for state in self.graph.states}
        kept = self.graph.activations if self.config.activations.rivals else {}
        evidence = {state: Evidence.read(self.store.folder(stage, verify=True)) for state, stage in kept.items()}
        tables = score(
            [self._record(state) for state in self.graph.states],
            statistics,
            self.config.metric,
            self.config.evaluation,
            seed=self.config.seed,
            # The report's own may have other settings of the runtime, and is made later or not at all.
            info={**identity(self.config), "config": to_yaml(self.config)},
            target_asr=self.config.unlearning.stopping.target_asr,
            rivals=rival_table(self.backdoors, self.encoder, statistics, evidence),
            tuning=pd.read_parquet(self.store.file(tuned, "trials.parquet")) if tuned else None,
        )
        tables.write(folder)

    # --- report ---

    def _report(self, folder: Path) -> None:
        from casd.report import write_report_files

        tables = RunTables.read(self.store.folder(self.graph.score))
        tables.info |= origin(self.config, self.graph, self.store, self.folder.name)
        named = tables.casd[~tables.casd["grid"].astype(bool)]
        write_report_files(tables, folder, relation_points(named, tables.transfer))

    def _publish(self) -> None:
        """Copy the report from the store to its folder, beside the configuration, unless that is there and whole."""
        report = self.store.folder(self.graph.report, verify=True)
        text = to_yaml(self.config)
        files = self.store.manifest(self.graph.report)["files"]
        if is_published(self.folder, files | {CONFIG_FILE: entry_of(text.encode())}):
            return
        with publishing(self.folder, "the report") as begun:
            for name in files:
                (begun / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(report / name, begun / name)
            (begun / CONFIG_FILE).write_bytes(text.encode())
