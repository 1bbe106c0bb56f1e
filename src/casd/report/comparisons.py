"""What several runs say together: objectives compared, CASD beside its rivals, the noise floor; as tables and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from casd.analysis.comparison import MEASURES, POOLED
from casd.metric.baselines import RIVALS
from casd.report.gallery import Drawing
from casd.report.markup import Cell, Row, Table
from casd.report.wording import ALL_MODELS, MISSING, fraction, mean_with_interval, p_text, percent, run_count, significant

if TYPE_CHECKING:  # matplotlib: what only compares numbers need not wait for it
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The frames over all runs of a sweep: see `compare_objectives`, `predictor_table`, `noise_floor`, `variance_shares`."""

    objectives: pd.DataFrame
    predictors: pd.DataFrame
    noise: pd.DataFrame
    shares: pd.DataFrame

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """By the names of their files."""
        return {f"comparison_{each.name}": getattr(self, each.name) for each in fields(self)}

    @cached_property
    def tables(self) -> list[Table]:
        """For people; those without a row are left out."""
        every = [objectives_table(self.objectives), predictors_table(self.predictors)]
        every += [noise_table(self.noise), shares_table(self.shares)]
        return [table for table in every if table.rows]


def objectives_drawings(frame: pd.DataFrame) -> list[Drawing]:
    """The figure of `compare_objectives`, where there is more than one."""
    if frame["objective"].nunique() < 2:
        return []
    alt = (
        "Dot plots, one panel for each model: the other backdoors' mean suppression under each objective, net of the clean"
        " control and of the phantoms, with 95 % intervals. The table of the same title has the numbers."
    )
    return [Drawing("objectives", "Objectives at the same strength", alt, OBJECTIVES_FIGURE, (frame,))]


def objectives_table(frame: pd.DataFrame) -> Table:
    """The fair comparison: every objective at the same strength."""
    groups: dict[str, list[Row]] = {}
    best = _best(frame, ["model"], frame["suppression_net_phantom"].where(~frame["objective"].map(_is_control)))
    for place, record in enumerate(frame.to_dict("records")):
        texts = [
            f"{record['included']} of {record['removals']}",
            record["excluded"] or MISSING,
            mean_with_interval(record, "own_asr"),
            *(_mean_of_runs(record, name) for name in MEASURES),
            fraction(record["clean_control"]),
            fraction(record["phantom_control"]),
            percent(record["clean_loss_change"]),
            fraction(record["steps"], 1),
            fraction(record["seconds"], 1),
        ]
        label = f"{record['objective']} (control)" if _is_control(record["objective"]) else record["objective"]
        groups.setdefault(model_label(record["model"]), []).append(_row(label, texts, best=place in best))
    seeds = ", ".join(map(str, sorted(set(frame.loc[frame["model"] != POOLED, "seeds"]))))
    return Table(
        name="objectives",
        title="Objectives at the same strength",
        caption=f"Seeds for each model: {seeds}. Included are removals that did not collapse and reached the target ASR of"
        " their own backdoor on validation prompts (where a target was set), and backdoors that the injected model obeys. Own"
        " ASR: on evaluation prompts. Others: mean suppression of the other backdoors' ASR (fraction), raw, and net"
        " of the same backdoor's suppression under the clean control and under the phantoms; in parentheses how many runs"
        " that is of, where others have none (their controls collapsed, or no removal is included). Every mean is the mean over"
        " runs of each run's mean. Brackets: 95 % bootstrap interval of it over seeds and backdoors. Clean, phantoms: mean"
        " suppression under these controls. Clean loss, steps, seconds: means of a removal. Bold: the objective whose removals"
        " suppress the others most, net of phantoms; (control): an objective that forgets nothing.",
        corner="objective",
        columns=(
            *("included", "excluded", "own ASR", "others", "net of clean", "net of phantoms"),
            *("clean", "phantoms", "clean loss", "steps", "seconds"),
        ),
        groups=tuple((model, tuple(rows)) for model, rows in groups.items()),
    )


def _mean_of_runs(record: Mapping[Any, Any], measure: str) -> str:
    """A mean with its interval, and of how many runs it is where that is not all."""
    text, count = mean_with_interval(record, measure), record[f"{measure}_runs"]
    return text if count in (0, record["runs"]) else f"{text} ({count} of {run_count(record['runs'])})"


def predictors_table(frame: pd.DataFrame) -> Table:
    """CASD beside its rivals as a predictor of transfer."""
    groups: dict[str, list[Row]] = {}
    best = _best(frame, ["model", "objective"], frame["rho"].abs().where(frame["role"] != "ceiling"))
    for place, record in enumerate(frame.to_dict("records")):
        texts = [
            record["role"],
            fraction(record["rho"]),
            p_text(record["p_value"]),
            p_text(record["p_corrected"]),
            p_text(record["q_value"]),
            fraction(record["rho_pairs"]),
            p_text(record["p_pairs"]),
            p_text(record["p_pairs_corrected"]),
            fraction(record["rho_partial"]),
            p_text(record["p_partial"] if record["role"] == "headline" else record["p_partial_corrected"]),
            fraction(record["r_squared"]),
            fraction(record["rank_error"]),
        ]
        count = f"{run_count(record['runs'])}, {record['n_pairs']} pairs"
        if record["excluded"]:
            count += f", excluded: {record['excluded']} of {record['removals']} removals"
        group = f"{record['objective']} ({count}), {model_label(record['model'])}"
        groups.setdefault(group, []).append(_row(record["predictor"], texts, best=place in best))
    rivals = "; ".join(f"{name}: {rival.description}" for name, rival in RIVALS.items() if name in set(frame["predictor"]))
    return Table(
        name="predictors",
        title="Predictors of transfer",
        caption="Response: suppression of ASR, centered by column, mean of both directions of a pair. ρ: Spearman, pooled"
        " over runs; negative where small distances go with strong transfer. p: Mantel test that permutes within"
        " runs; corrected: by the maximum over all variants that were looked at, or over all rivals; headline"
        " variants were named before. q: Benjamini and Hochberg. Pairs only: what belongs to single backdoors is"
        " taken out of both sides first, without which shared effects alone can make a ρ. Given same target: partial ρ"
        " with what the same target accounts for taken out of both; its p is corrected, but for a headline variant."
        " R² and rank error:"
        " prediction of the suppression of a backdoor that was left out (0 and 1 are what a mean and chance"
        f" achieve). Bold: the largest |ρ| of a group, a ceiling aside. {rivals}.",
        corner="predictor",
        columns=(
            *("role", "ρ", "p", "p corrected", "q", "ρ, pairs only", "p", "p corrected", "ρ, given same target", "p"),
            *("R²", "rank error"),
        ),
        groups=tuple((group, tuple(rows)) for group, rows in groups.items()),
    )


def noise_table(frame: pd.DataFrame) -> Table:
    """CASD of one removal to its repeat, against that of different removals."""
    groups: dict[str, list[Row]] = {}
    for record in frame.to_dict("records"):
        texts = [
            str(record["variant"]),
            f"{record['repeats']}",
            record["excluded"] or MISSING,
            significant(record["same"]),
            significant(record["different"]),
            fraction(record["ratio"]),
            fraction(record["closest"]),
        ]
        groups.setdefault(model_label(record["model"]), []).append(_row(record["objective"], texts))
    return Table(
        name="noise_floor",
        title="Noise floor of CASD",
        caption="Same: distance between two removals of one backdoor with other documents in another order. Different:"
        " distance of the repeated removal to those of other backdoors. Ratio: same / different; 1 or more means"
        " that the distance cannot tell removals apart. Nearest: share of repeats that are nearer to their own"
        " removal than to any other. Means over runs of each run's mean; a repeat is excluded for the same reasons as a"
        " removal.",
        corner="objective",
        columns=("variant", "repeats", "excluded", "same", "different", "ratio", "nearest"),
        groups=tuple((model, tuple(rows)) for model, rows in groups.items()),
    )


def shares_table(frame: pd.DataFrame) -> Table:
    """How much of the others' suppression is about pairs."""
    rows = []
    if len(frame):
        means = frame.groupby(["model", "objective"], sort=False)[["sd", "pair", "noise", "pair_net"]].mean()
        for record in means.reset_index().to_dict("records"):
            texts = [str(record["objective"]), *(fraction(record[name]) for name in ("sd", "pair", "noise", "pair_net"))]
            rows.append(_row(record["model"], texts))
    return Table(
        name="pair_shares",
        title="What of the suppression is about pairs",
        caption="Standard deviation of the other backdoors' suppression over the cells of a run; the share of their"
        " variance that is left after each removal's and each backdoor's own level; the share that the noise of"
        " measuring rates explains of that; and the difference, which is what a distance between removals could"
        " foretell. Means over seeds.",
        corner="model",
        columns=("objective", "standard deviation", "pair share", "noise share", "pair share net of noise"),
        groups=(("", tuple(rows)),) if rows else (),
    )


OBJECTIVES_FIGURE: Final = "casd.report.comparisons:objectives_figure"
"""As `Drawing.drawn_by`."""
_LABEL: Final = 34
"""Characters of a line of a row's label in the figure."""


def objectives_figure(frame: pd.DataFrame) -> Figure:
    """The others' suppression net of the controls with its intervals: a panel for each model, a row for each objective."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from casd.report.drawing import BLUE, VERMILLION, plain, without_frame

    series = (
        ("suppression_net_clean", BLUE, "o", -0.15, "net of the clean control"),
        ("suppression_net_phantom", VERMILLION, "s", 0.15, "net of the phantoms"),
    )
    models = list(dict.fromkeys(frame["model"]))
    objectives = list(dict.fromkeys(frame["objective"]))
    labels = [plain(textwrap.fill(str(objective), _LABEL)) for objective in objectives]  # with a setting they are long
    width = max(len(line) for label in labels for line in label.splitlines())
    height = 0.22 + 0.14 * max(len(label.splitlines()) for label in labels)
    size = (0.9 + 0.065 * width + 2.6 * len(models), 1.3 + height * len(objectives))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, sharex=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        rows = frame[frame["model"] == model].set_index("objective").reindex(objectives)
        axes.axvline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
        for column, color, marker, offset, label in series:
            places = [place + offset for place in range(len(objectives))]
            values = rows[column].to_numpy(dtype=float)
            low, high = (rows[f"{column}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
            axes.hlines(places, low, high, color=color, linewidth=1.4)
            axes.scatter(values, places, color=color, marker=marker, s=24, label=label, zorder=3)
        axes.set_title(plain(model_label(model)), fontsize=9.5)
        axes.set_yticks(range(len(objectives)), labels, fontsize=8)
        axes.set_ylim(len(objectives) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="x", labelsize=8)
        without_frame(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(
        textwrap.fill("Mean suppression of the other backdoors' ASR, with 95 % intervals", int(14 * size[0])), fontsize=10
    )
    return figure


def model_label(model: Any) -> str:
    """A model's name; of POOLED what it stands for."""
    return ALL_MODELS if model == POOLED else str(model)


def _is_control(objective: Any) -> bool:
    """Whether an objective (with its setting, if it has one) only retains."""
    return str(objective).partition(",")[0] == "retain_only"


def _best(frame: pd.DataFrame, by: list[str], values: pd.Series) -> set[Any]:
    """The places of the rows with the largest value of each group; none in a group of one, where nothing is compared."""
    if frame.empty:
        return set()
    keys = [frame[name].reset_index(drop=True) for name in by]
    groups = values.reset_index(drop=True).dropna().groupby(keys)
    return {group.idxmax() for _, group in groups if len(group) > 1}


def _row(label: Any, texts: Sequence[str], *, best: bool = False) -> Row:
    return Row(str(label), tuple(Cell(text or MISSING, best=best) for text in texts))
