"""The tables and figures of each exhibit, made of a set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from casd.analysis.collection import DETAILED_RUNS
from casd.analysis.comparison import grouped, mean_of_runs, noise_floor, over_runs
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL
from casd.report.comparisons import OBJECTIVES_FIGURE, model_label, noise_table, objectives_table, predictors_table
from casd.report.gallery import Drawing
from casd.report.markup import Cell, Row, Table
from casd.report.matrices import asr_table, casd_table, mean_asr_table
from casd.report.tables import relation_table, specificity_table, summary_table, utility_table
from casd.report.wording import fraction, perplexity, short_run_name
from casd.reproduction.claims import Evidence


@dataclass(frozen=True, eq=False)
class Shown:
    """What an exhibit shows; tables without a row are left out later."""

    tables: Sequence[Table]
    drawings: Sequence[Drawing] = ()


def summary(evidence: Evidence) -> Shown:
    """The runs, a row each."""
    return Shown([summary_table(evidence.runs)])


def asr_matrices(evidence: Evidence) -> Shown:
    """The matrices of remaining ASR: means over the runs of a model, and each run's."""
    runs = evidence.runs
    alt = "Heatmaps of the attack success rate after each removal, one per run. The tables hold the numbers."
    pages = [runs[first : first + DETAILED_RUNS] for first in range(0, len(runs), DETAILED_RUNS)]
    drawings = [
        Drawing(
            f"asr_heatmaps-{number}",
            "Attack success rate after each removal",
            alt,
            "casd.report.heatmaps:asr_heatmaps",
            (page,),
        )
        for number, page in enumerate(pages, 1)
    ]
    return Shown([mean_asr_table(runs), *(_of_run(asr_table(tables), tables) for tables in runs)], drawings)


def casd_matrices(evidence: Evidence) -> Shown:
    """The matrices of each headline CASD, of each run."""
    alt = "Heatmaps of CASD between removals. The tables hold the numbers."
    return Shown(
        [_of_run(casd_table(tables, variant), tables) for tables in evidence.runs for variant in tables.headline],
        [
            Drawing(
                f"casd_heatmap-{tables.info['run']}",
                f"CASD of removals, {short_run_name(tables)}",
                alt,
                "casd.report.heatmaps:casd_heatmaps",
                (tables,),
            )
            for tables in evidence.runs
        ],
    )


def relation(evidence: Evidence) -> Shown:
    """CASD and its rivals as predictors, pooled and by model; each run's correlations; the pairs as points."""
    alt = "Scatter plots of the distance of each pair of removals against their mutual suppression, a panel for each model."
    predictors = evidence.predictors
    variants = dict.fromkeys(variant for tables in evidence.runs for variant in tables.headline)
    return Shown(
        [predictors_table(predictors), relation_table(evidence.runs)],
        [
            Drawing(
                f"relation-{name}",
                f"{name} and suppression",
                alt,
                "casd.report.figures:relation_panels",
                (evidence.runs, name, predictors),
            )
            for name in variants
        ],
    )


def controls(evidence: Evidence) -> Shown:
    """Suppression net of each control, the controls themselves, and the noise floor where removals were repeated."""
    suppression = suppression_at(evidence)
    more = [specificity_table(evidence.runs), noise_table(noise_floor(evidence.runs))]
    return Shown([*suppression.tables, *more], suppression.drawings)


def utility(evidence: Evidence) -> Shown:
    """Clean loss and degenerate generations, and benchmarks where they were run."""
    benchmarks = [_of_run(utility_table(tables), tables) for tables in evidence.runs if len(tables.utility)]
    return Shown([language_table(evidence.runs), *benchmarks])


def suppression_at(evidence: Evidence) -> Shown:
    """Suppression net of both controls, for each objective or setting."""
    frame = evidence.objectives
    alt = "Dot plots of the others' mean suppression net of both controls, with 95 % intervals. The table has the numbers."
    drawing = Drawing("suppression", "The others' suppression, net of the controls", alt, OBJECTIVES_FIGURE, (frame,))
    return Shown([replace(objectives_table(frame), title="The others' suppression, net of the controls")], [drawing])


def language_table(runs: Sequence[RunTables]) -> Table:
    """What removals and controls cost in clean language: means over the runs of a model and objective."""
    groups: dict[str, list[Row]] = {}
    for (model, objective), members in grouped(runs).items():
        states = over_runs(members, "states")
        collapsed = states["collapsed"].astype(bool)
        for label, chosen in (
            ("injected", states["kind"] == "injected"),
            ("removals", states["kind"] == "removal"),
            ("clean control", states["state"] == CLEAN_CONTROL),
            ("other controls", (states["kind"] == "control") & (states["state"] != CLEAN_CONTROL)),
        ):
            rows = states[chosen]
            if rows.empty:
                continue
            texts = [
                f"{len(rows)}",
                f"{int(collapsed[chosen].sum())} of {len(rows)}",
                perplexity(mean_of_runs(rows["clean_loss"], rows["run"])),
                fraction(mean_of_runs(rows["clean_loss"], rows["run"]), 3),
                fraction(mean_of_runs(rows["clean_loss_ratio"], rows["run"]), 3),
                fraction(rows["clean_loss_ratio"].max(), 3),
                fraction(mean_of_runs(rows["degenerate_rate"], rows["run"])),
            ]
            group = f"{objective}, {model_label(model)}"
            groups.setdefault(group, []).append(Row(label, tuple(map(Cell, texts))))
    return Table(
        name="clean_language",
        title="What removals cost in clean language",
        caption=f"Runs: {len(runs)}. Means over runs of each run's mean over its model states, collapsed ones included."
        " Perplexity: exp of the mean clean loss,"
        " in nats per token, on the evaluation split. Ratio: of the clean loss to the injected model's, mean and largest."
        " Degenerate: share of clean prompts that were answered with nothing or with a loop.",
        corner="states",
        columns=("n", "collapsed", "perplexity", "clean loss", "ratio", "largest ratio", "degenerate"),
        groups=tuple((group, tuple(rows)) for group, rows in groups.items()),
    )


def _of_run(table: Table, tables: RunTables) -> Table:
    """A table of one run among those of others: its files named by the run, too."""
    return replace(table, name=f"{table.name}-{tables.info['run']}", title=f"{table.title}, {short_run_name(tables)}")
