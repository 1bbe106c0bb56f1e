"""One run, in the order of a paper's method section.

Several backdoors are injected into one model. Each removal and each control starts from the injected model. Attack success and
activations are measured on every state of the model; transfer, CASD and a report are computed from them.

    corpus → base model → injected model → one removal for each backdoor, and the controls
                                         → attack success and activation statistics of every state
                                         → transfer, CASD, their relation → report

`casd.pipeline.graph` defines the stages of a configuration, `casd.pipeline.stages` makes them. A stage that is in the store is
not made again. There is one model in memory: every removal starts from the injected weights, restored in place.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch

from casd.config import Config
from casd.config.advice import rate_warning
from casd.config.compose import to_yaml
from casd.config.states import INJECTED
from casd.data.shrinking import explaining_out_of_memory
from casd.evaluation.asr import Evaluation
from casd.pipeline import checks, persistence, scores, stages
from casd.pipeline.graph import StageGraph, run_folder, stage_graph
from casd.pipeline.inputs import Inputs, build_backdoors
from casd.pipeline.records import write_record
from casd.pipeline.saved import save_models
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.pipeline.units import keeps_removals
from casd.training.tracking import check_trackers
from casd.utils import distributed, ending
from casd.utils.atomic import write_text
from casd.utils.errors import ConfigError
from casd.utils.progress import say, track
from casd.utils.runtime import own_numerics
from casd.utils.sealed import entry_of

CONFIG_FILE: Final = "config.yaml"
"""The configuration in a run's folder."""
ENDS: Final = ("inject", "unlearn", "activations", "evaluate", "score", "report")
"""The stages up to which a run can go, in order; "activations" and "evaluate" are independent of each other."""


class Run:
    """One run over a store of finished stages.

    Args:
        config: configuration of the run.

    Attributes:
        graph: the stages of the configuration.
        inputs: the inputs of the stages.
        models: folders of the models that `run_to` saved (`runtime.save_models`).

    Raises:
        ConfigError: settings that cannot work together.
    """

    def __init__(self, config: Config):
        self.config = config
        self.graph = checked_graph(config)
        self.backdoors = build_backdoors(config)
        self.inputs = Inputs(config, self.backdoors, self.graph, StageStore(Path(config.runtime.store)))
        self.models: list[Path] = []

    @property
    def store(self) -> StageStore:
        """The finished stages."""
        return self.inputs.store

    @property
    def folder(self) -> Path:
        """Folder of the report, the saved models and the files of trackers."""
        return run_folder(self.config, self.graph)

    def join(self) -> None:
        """Connect to the other processes of a launcher, if any, before the store is read or written.

        Raises:
            ConfigError: a launch that cannot make one run (see `casd.utils.distributed.join`).
        """
        distributed.check_launch()
        if distributed.processes() > 1:
            distributed.join(self.inputs.runtime.device)

    @distributed.explaining_lost_processes()
    @own_numerics()
    def run_to(self, end: str = "report") -> None:
        """Make all stages up to `end` (one of ENDS) that are not in the store.

        Raises:
            ConfigError: an unknown end, a tracker that is not installed, or a launch that cannot make one run.
            CasdError: an error of a stage; finished stages are kept.
        """
        if end not in ENDS:
            raise ConfigError(f"Cannot run until {end!r}; choices: {', '.join(ENDS)}.")
        self.begin()
        note(self.config, self.graph, end)
        self.base()
        self.inject(end)
        if end != "inject":
            self.tune()
            if end in ("score", "report"):
                self.clean_model()
            with track(
                f"{self.config.model.label}, {self.config.unlearning.objective.name}", len(self.graph.states)
            ) as advance:
                for state in self.graph.states:
                    before = self.store.executed
                    self.state(state, end)
                    advance(reused=self.store.executed == before)
        self.finish(end)

    def begin(self) -> None:
        """Check what no stage checks, join the other processes, and set the number of threads."""
        check_trackers(self.config.runtime.trackers)
        self.join()
        if warning := rate_warning(self.config):
            _say_once(warning)
        if self.config.runtime.threads:
            torch.set_num_threads(self.config.runtime.threads)

    # The parts of a run, which `casd.pipeline.units` distributes over workers.

    def base(self) -> None:
        """Make the corpus and the base model."""
        graph = self.graph
        self._make(graph.corpus, stages.make_corpus, alone=True)
        if not self.store.is_done(graph.score):  # a finished run does not read its corpus, which may be large
            checks.check_sizes(self.config, self.inputs.corpus, self.backdoors)
        self._make(graph.base, stages.make_base)
        self._make(graph.tokens, stages.make_tokens, alone=True)

    def inject(self, end: str) -> None:
        """Make the model with all backdoors, evaluate it, and stop if no backdoor took: no removal would show anything."""
        self._make(self.graph.inject, stages.make_injected)
        if end in ("evaluate", "score", "report"):
            stage = self.graph.evaluate[INJECTED]
            self._make_state(stage, stages.make_evaluation, INJECTED)
            checks.check_injection(self.config.injection, Evaluation.read(self.store.folder(stage)))

    def tune(self) -> None:
        """Choose the settings of the objective, if it is tuned."""
        if self.graph.tune:
            self._make(self.graph.tune, stages.make_tuning)

    def clean_model(self) -> None:
        """Make the model without backdoors, with which persistence is compared, if it is measured."""
        if self.graph.clean_model:
            self._make(self.graph.clean_model, persistence.make_clean_model)

    def state(self, state: str, end: str) -> None:
        """Make one removal or control, or nothing for the injected model, and measure it."""
        if state in self.graph.unlearn:
            self._make_state(self.graph.unlearn[state], stages.make_removed, state)
            if keeps_removals(self.config, end):
                self._make_state(self.graph.weights[state], stages.write_weights, state)
        if end in ("evaluate", "score", "report"):
            self._make_state(self.graph.evaluate[state], stages.make_evaluation, state)
            if self.graph.utility:
                self._make_state(self.graph.utility[state], stages.make_utility, state)
        if end in ("activations", "score", "report"):
            self._make_state(self.graph.activations[state], stages.make_activations, state)
        if end in ("score", "report") and state in self.graph.persistence:
            self._make_state(self.graph.persistence[state], persistence.make_persistence, state)

    def finish(self, end: str) -> None:
        """Score, report, and write the models of `runtime.save_models`."""
        if end in ("score", "report"):
            self._make(self.graph.score, scores.make_scores, alone=True)
        if end == "report":
            name = self.folder.name
            self._make(self.graph.report, lambda inputs, folder: scores.make_report(inputs, name, folder), alone=True)
            distributed.make_alone(self._publish)
            note(self.config, self.graph, end)
        distributed.make_alone(partial(self._save_models, end))

    def _make_state(self, stage: Stage, make: Callable[[Inputs, str, Path], None], state: str) -> None:
        self._make(stage, lambda inputs, folder: make(inputs, state, folder))

    def _make(self, stage: Stage, make: Callable[[Inputs, Path], None], *, alone: bool = False) -> None:
        """Make a stage unless it is in the store: by all processes together, or by the main process `alone`."""
        ending.check()
        produce = explaining_out_of_memory(f"stage {stage}")(partial(make, self.inputs))
        if alone:
            distributed.make_alone(partial(self.store.run, stage, produce))
        else:
            distributed.make_together(partial(self.store.run, stage), produce)

    def _save_models(self, end: str) -> None:
        """Write the models of `runtime.save_models` to the run's folder; a run up to a kind of state saves that kind."""
        kept = {*self.config.runtime.save_models, {"inject": "injected", "unlearn": "removed"}.get(end)}
        states = [INJECTED] if "injected" in kept else []
        if "removed" in kept and end != "inject":
            states += self.graph.unlearn
        if states:
            self.models = save_models(self.inputs, states)
            if not (self.folder / CONFIG_FILE).is_file():  # there is no report
                write_text(self.folder / CONFIG_FILE, to_yaml(self.config))

    def _publish(self) -> None:
        """Copy the report from the store to its folder, with the configuration, unless the folder is complete."""
        from casd.report.publish import is_published, publishing  # imported here, as it imports matplotlib

        report = self.store.folder(self.graph.report, verify=True)
        text = to_yaml(self.config)
        files = self.store.manifest(self.graph.report)["files"]
        if is_published(self.folder, files | {CONFIG_FILE: entry_of(text.encode())}):
            return
        with publishing(self.folder, "the report") as unfinished:
            for name in files:
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(report / name, unfinished / name)
            (unfinished / CONFIG_FILE).write_bytes(text.encode())


def checked_graph(config: Config) -> StageGraph:
    """Return the stages of a configuration after checking what can be checked before anything is read or made.

    Raises:
        ConfigError: settings that cannot work together.
        ModelError: a model file that does not exist.
    """
    checks.check_config(config, build_backdoors(config))
    return stage_graph(config)


def note(config: Config, graph: StageGraph, end: str) -> None:
    """Note in the store which stages a run up to `end` asks for, and whether its report is published."""
    if distributed.is_main():
        wanted, folder = graph.up_to(end, removed=keeps_removals(config, end)), run_folder(config, graph)
        store = Path(config.runtime.store).absolute()
        write_record(store, graph.score, folder, config.model.label, wanted, published=folder.is_dir())


@functools.cache
def _say_once(text: str) -> None:
    """Print a line, once in all runs of a sweep."""
    say(text)
