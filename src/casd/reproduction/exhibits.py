"""The tables and figures of each exhibit, made from a set of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from casd.analysis.collection import DETAILED_RUNS
from casd.analysis.grouping import grouped, headline_variants, mean_of_runs, over_runs
from casd.analysis.noise import noise_floor
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL
from casd.report.comparisons import noise_table, objectives_table, predictors_table
from casd.report.figures import objectives_figure, relation_panels
from casd.report.gallery import Drawing
from casd.report.heatmaps import asr_heatmaps, casd_heatmaps
from casd.report.markup import Table, table_of
from casd.report.matrices import asr_table, casd_table, mean_asr_table, of_run
from casd.report.tables import relation_table, specificity_table, summary_table, utility_table
from casd.report.wording import fraction, model_label, perplexity, short_run_name
from casd.reproduction.factors import factors_table, one_at_a_time
from casd.reproduction.verdicts import Evidence


@dataclass(frozen=True, eq=False)
class Shown:
    """What an exhibit shows. Tables without a row are left out later; drawings are drawn when they are asked for."""

    tables: Sequence[Table]
    drawings: Iterable[Drawing] = ()


def summary(evidence: Evidence) -> Shown:
    """A row for each run."""
    return Shown([summary_table(evidence.runs)])


def asr_matrices(evidence: Evidence) -> Shown:
    """The ASR matrices: means over the runs of a model, and each run's."""
    runs = evidence.runs
    alt = "Heat maps of the attack success rate after each removal, one per run. The tables hold the numbers."
    pages = [runs[first : first + DETAILED_RUNS] for first in range(0, len(runs), DETAILED_RUNS)]
    title = "Attack success rate after each removal"
    drawings = (Drawing(f"asr_heatmaps-{n}", title, alt, asr_heatmaps(page)) for n, page in enumerate(pages, 1))
    return Shown([mean_asr_table(runs), *(of_run(asr_table(tables), tables) for tables in runs)], drawings)


def casd_matrices(evidence: Evidence) -> Shown:
    """The matrices of each headline CASD, of each run."""
    alt = "Heat maps of CASD between removals. The tables hold the numbers."
    drawings = (
        Drawing(f"casd_heatmap-{tables.info['run']}", f"CASD of removals, {short_run_name(tables)}", alt, casd_heatmaps(tables))
        for tables in evidence.runs
    )
    shown = [of_run(casd_table(tables, variant), tables) for tables in evidence.runs for variant in tables.headline]
    return Shown(shown, drawings)


def relation(evidence: Evidence) -> Shown:
    """CASD and its baselines as predictors, pooled and by model; each run's correlations; a point for each pair."""
    alt = "Scatter plots of the distance of each pair of removals against their mutual suppression, a panel for each model."
    predictors = evidence.predictors
    variants = headline_variants(evidence.runs)
    drawings = (
        Drawing(f"relation-{name}", f"{name} and suppression", alt, relation_panels(evidence.runs, name, predictors))
        for name in variants
    )
    return Shown([predictors_table(predictors), relation_table(evidence.runs)], drawings)


def controls(evidence: Evidence) -> Shown:
    """Suppression net of each control, the controls themselves, and the noise floor where removals were repeated."""
    suppression = suppression_at(evidence)
    more = [specificity_table(evidence.runs), noise_table(noise_floor(evidence.runs))]
    return Shown([*suppression.tables, *more], suppression.drawings)


def utility(evidence: Evidence) -> Shown:
    """Clean loss and degenerate generations, and benchmarks where they were run."""
    benchmarks = [of_run(utility_table(tables), tables) for tables in evidence.runs if len(tables.utility)]
    return Shown([language_table(evidence.runs), *benchmarks])


def suppression_at(evidence: Evidence) -> Shown:
    """Suppression net of both controls, for each objective or setting."""
    frame = evidence.objectives
    title = "The others' suppression, net of the controls"
    alt = "Dot plots of the others' mean suppression net of both controls, with 95 % intervals. The table has the numbers."
    drawing = Drawing("suppression", title, alt, objectives_figure(frame))
    return Shown([replace(objectives_table(frame), title=title)], [drawing])


def factors(evidence: Evidence) -> Shown:
    """The others' suppression at one setting, and with one thing of it changed at a time."""
    frame = one_at_a_time(evidence)
    table = factors_table(frame)
    alt = "Dot plot of the others' mean suppression net of both controls, a row for each setting. The table has the numbers."
    drawing = Drawing("suppression", table.title, alt, objectives_figure(frame.assign(objective=frame["changed"])))
    return Shown([table], [drawing])


def language_table(runs: Sequence[RunTables]) -> Table:
    """The clean language of models after removals and controls: means over the runs of a model and objective."""
    rows, groups = [], []
    for (model, objective), members in grouped(runs).items():
        states = over_runs(members, "states")
        kinds = (
            states["kind"].where(states["kind"] != "removal", "removals").where(states["kind"] != "control", "other controls")
        )
        kinds = kinds.where(states["state"] != CLEAN_CONTROL, "clean control")
        for label in ("injected", "removals", "clean control", "other controls"):
            chosen = states[kinds == label]
            if chosen.empty:
                continue
            loss, ratio, degenerate = (
                mean_of_runs(chosen[name], chosen["run"]) for name in ("clean_loss", "clean_loss_ratio", "degenerate_rate")
            )
            rows.append(
                {
                    "states": label,
                    "n": f"{len(chosen)}",
                    "collapsed": f"{int(chosen['collapsed'].astype(bool).sum())} of {len(chosen)}",
                    "perplexity": perplexity(loss),
                    "clean loss": fraction(loss, 3),
                    "ratio": fraction(ratio, 3),
                    "largest ratio": fraction(chosen["clean_loss_ratio"].max(), 3),
                    "degenerate": fraction(degenerate),
                }
            )
            groups.append(f"{objective}, {model_label(model)}")
    return table_of(
        rows,
        groups=groups,
        name="clean_language",
        title="What removals cost in clean language",
        caption=f"Runs: {len(runs)}. Means over runs of each run's mean over its model states, collapsed ones included."
        " Perplexity: exp of the mean clean loss,"
        " in nats per token, on the evaluation split. Ratio: of the clean loss to the injected model's, mean and largest."
        " Degenerate: share of clean prompts after which the model generated nothing or a loop.",
    )


SHOWN: Final[dict[str, Callable[[Evidence], Shown]]] = {
    "asr_matrices": asr_matrices,
    "casd_matrices": casd_matrices,
    "relation": relation,
    "controls": controls,
    "utility": utility,
    "learning_rate": suppression_at,
    "writing_system": suppression_at,
    "factors": factors,
    "summary": summary,
}
"""The tables and figures of each exhibit in `casd.reproduction.catalogue.EXHIBITS`."""
