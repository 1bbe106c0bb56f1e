"""What finished defences say: tables, a figure, and sentences by rule; for the terminal and as report.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from casd.analysis.inclusion import ESTABLISHED_ASR
from casd.defence.results import CHOSEN, DefenceTables, Summary, calibration, conditions, summaries
from casd.report.drawing import own_style, save
from casd.report.markup import Table
from casd.report.wording import MISSING, fraction, interval_text, run_count
from casd.stats.means import MeanOverRuns

_NAMES = {
    "suspect": "no defence",
    "fine_tuning": "clean fine-tuning",
    "fine_pruning": "fine-pruning",
    "crow": "CROW",
    "averaging": "averaging with a clean base",
    "planted": "dummies planted, not removed",
    "control:clean": "planted, then clean text",
    "control:phantom": "planted, phantom removed",
    CHOSEN: "the chosen removal",
}


def label(state: str) -> str:
    """A state in words."""
    if state.startswith("removed_"):
        number, _, setting = state.removeprefix("removed_").partition("_setting_")
        return f"{number} {'dummy' if number == '1' else 'dummies'} removed" + (f", setting {setting}" if setting else "")
    return _NAMES.get(state, state)


def tables(runs: Sequence[DefenceTables]) -> list[Table]:
    """Return the table of the states and, if the defences were opened, that of the attacker's backdoors."""
    found = [_states(runs)]
    if any(len(run.attack) for run in runs):
        found += [_backdoors(runs), _trust(runs)]
    return found


def _states(runs: Sequence[DefenceTables]) -> Table:
    opened = any(len(run.attack) for run in runs)
    compared = opened and any(run.chosen for run in runs)
    rows = {}
    for each in summaries(runs):
        if each.state == CHOSEN and len(runs) == 1:  # a row says so
            continue
        row = {"clean loss": _mean(each.clean_loss_ratio, "x"), "held-out left": _mean(each.predicted)}
        if opened:
            row |= {"attacker's ASR": _mean(each.asr), "attacker's left": _mean(each.left)}
        if compared:
            row |= {"minus chosen": MISSING if each.state == CHOSEN else _mean(each.excess)}
        row |= {task: _mean(value) for task, value in each.benchmarks.items()}
        collapsed = f" (collapsed in {each.collapsed} of {each.runs})" if each.collapsed else ""
        rows[label(each.state) + collapsed] = row | {"chosen": f"{each.chosen}/{each.runs}" if each.kind == "removal" else ""}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("state")
    over = "runs and backdoors, of clean loss and held-out dummies over runs" if len(runs) > 1 else "backdoors"
    caption = (
        f"{run_count(len(runs))}. Clean loss: relative to the attacked model's. Left: ASR as a fraction of its value before the"
        f" removal, of backdoors with an ASR of at least {ESTABLISHED_ASR} then. Brackets: 95 % interval over {over}."
    )
    if compared:
        caption += (
            " Minus chosen: what is left minus what the removal leaves that the same defence chose, backdoor by backdoor, of"
            " the defences that chose one."
        )
    return Table("states", "Every state of the model", caption, frame)


def _mean(value: MeanOverRuns, unit: str = "") -> str:
    if math.isnan(value.mean):
        return MISSING
    interval = "" if value.low == value.high else interval_text(value.low, value.high)
    return f"{fraction(value.mean)}{unit}{interval}"


def _backdoors(runs: Sequence[DefenceTables]) -> Table:
    """The attacker's backdoors, without a defence and in the chosen state, and whether a dummy had their behavior.

    Both are of the defences that chose a removal, if any did.
    """
    found = []
    for run in [run for run in runs if run.chosen] or runs:
        triggered = run.attack[run.attack["prompt_set"] == "triggered"]
        wide = triggered.pivot(index="backdoor", columns="state", values="rate")
        described = triggered.drop_duplicates("backdoor").set_index("backdoor")[["behavior", "writing", "like_a_dummy"]]
        row = described.assign(before=wide["suspect"], after=wide[run.chosen] if run.chosen else math.nan)
        found.append(row.reset_index())
    rows = pd.concat(found).groupby(["behavior", "writing", "like_a_dummy"], sort=False)[["before", "after"]]
    mean, count = rows.mean(), rows.size()
    frame = pd.DataFrame(
        {
            "trigger": mean.index.get_level_values("writing"),
            "a dummy has it": ["yes" if same else "no" for same in mean.index.get_level_values("like_a_dummy")],
            "backdoors": count.to_numpy().astype(str),
            "ASR, no defence": mean["before"].map(fraction).to_numpy(),
            "ASR, chosen removal": mean["after"].map(fraction).to_numpy(),
        },
        index=pd.Index(mean.index.get_level_values("behavior"), name="attacker's behavior"),
    )
    caption = "Mean over the attacker's backdoors of a kind. The behavior is that of a dummy, planted or held out, or not."
    return Table("backdoors", "What is left of the attacker's backdoors, by kind", caption, frame)


def _trust(runs: Sequence[DefenceTables]) -> Table:
    """What the held-out dummies predict, against what is observed of the attacker's backdoors."""
    found = calibration(runs)
    frame = pd.DataFrame(
        {
            "pairs": [str(len(found.pairs))],
            "predicted": [fraction(found.pairs["predicted"].mean())],
            "observed": [fraction(found.pairs["observed"].mean())],
            "predicted - observed": [fraction(found.error)],
            "Spearman": [fraction(found.correlation)],
        },
        index=pd.Index(["all states with dummies"], name="states"),
    )
    caption = (
        "Predicted: what is left of the held-out dummies. Observed: what is left of the attacker's backdoors. A negative"
        " difference promises too much."
    )
    return Table("calibration", "Can the held-out dummies be trusted?", caption, frame)


def sentences(runs: Sequence[DefenceTables]) -> list[str]:
    """Say what the defences show, and what they do not."""
    said = [*_openings(runs)]
    undecided = [run for run in runs if not run.chosen]
    if undecided:
        reason = undecided[0].info["decision"]["reason"]
        many = f"In {len(undecided)} of {run_count(len(runs))} no" if len(runs) > 1 else "No"
        said.append(f"{many} defence was chosen: {reason}.")
    if decided := [run for run in runs if run.chosen]:
        said += _outcome(decided)
    return said


def _openings(runs: Sequence[DefenceTables]) -> list[str]:
    changed = [run for run in runs if run.info["opened"] > 1]
    if not changed:
        return []
    most = max(run.info["opened"] for run in changed)
    return [
        f"Opened {most} times with different settings{f' ({len(changed)} of {run_count(len(runs))})' if len(runs) > 1 else ''}:"
        " later openings were decided with knowledge of earlier ones."
    ]


def _outcome(runs: Sequence[DefenceTables]) -> list[str]:
    """Compare the chosen removals with the controls and cleanings of the same defences, all of which chose one."""
    by_name = {each.state: each for each in summaries(runs)}
    chosen = by_name[CHOSEN]
    loss = f"Its clean loss is {_mean(chosen.clean_loss_ratio)} times the attacked model's."
    if math.isnan(chosen.left.mean):
        return [
            f"The chosen removal leaves {_mean(chosen.predicted)} of the held-out dummies' ASR, which it was chosen by: what is"
            f" left of such backdoors is rather more. {loss}",
            "Whether the model has a backdoor, and what is left of it, is not known: the estimate holds for backdoors like the"
            " dummies, and only as far as the held-out ones are like an attacker's.",
        ]
    said = [
        f"The chosen removal leaves {_mean(chosen.left)} of the attacker's ASR; the held-out dummies predicted"
        f" {_mean(chosen.predicted)}. {loss}",
        *_compared(by_name.values()),
    ]
    own = [run.states.loc[run.states["state"] == run.chosen, "held_out_asr"].iloc[0] for run in runs]
    left = fraction(sum(own) / len(own))
    said.append(f"The held-out dummies, which the defender planted, are left with a mean ASR of {left}.")
    if len(runs) == 1:
        said.append("One run says little: repeat it with other seeds and attackers, seed=0,1,2 attack=behaviors,languages.")
    return said


def _compared(states: Iterable[Summary]) -> Iterator[str]:
    """Compare what the chosen removals leave with the best of the controls and cleanings that broke no model."""
    others = [each for each in states if each.kind in ("cleaning", "control", "planted") and not math.isnan(each.excess.mean)]
    if whole := [each for each in others if not each.collapsed]:
        best = min(whole, key=lambda each: each.left.mean)
        limits = "of one backdoor alone" if math.isnan(best.excess.low) else ""
        if best.excess.low <= 0 <= best.excess.high:
            limits = "not distinguishable from zero"
        side = "in favour of" if best.excess.mean > 0 else "against"
        yield (
            f"The best of the controls and cleanings, {label(best.state)}, leaves {_mean(best.left)} in these defences. The"
            f" difference within defences and backdoors is {_mean(best.excess)} {side} the chosen"
            f" removal{f', {limits}' if limits else ''}."
        )
    if broken := [label(each.state) for each in others if each.collapsed]:
        yield f"Left out of this comparison, since they broke a model: {', '.join(broken)}."


def figure(runs: Sequence[DefenceTables]) -> Figure:
    """What is left of the attacker's ASR in each state and, beside it, predicted against observed."""
    found = [each for each in summaries(runs) if not math.isnan(each.left.mean)]
    drawn = Figure(figsize=(9.0, 0.32 * len(found) + 1.4), layout="constrained")
    bars, points = drawn.subplots(1, 2, width_ratios=[3, 2])
    places = range(len(found))[::-1]
    colors = {"removal": "C0", "cleaning": "C2", "control": "0.6", "planted": "0.6", "suspect": "0.3"}
    for place, each in zip(places, found, strict=True):
        bars.barh(place, each.left.mean, color=colors[each.kind], height=0.7)
        if not math.isnan(each.left.low):
            bars.plot([each.left.low, each.left.high], [place, place], color="black", lw=1)
    bars.set_yticks(list(places), [label(each.state) for each in found])
    bars.set_xlim(0, None)
    bars.set_xlabel("attacker's ASR left (fraction)")
    pairs = calibration(runs).pairs
    points.plot([0, 1], [0, 1], color="0.8", lw=1)
    points.scatter(pairs["predicted"], pairs["observed"], s=14, color="C0", alpha=0.7)
    points.set_xlabel("predicted: held-out dummies left")
    points.set_ylabel("observed: attacker's left")
    return drawn


def write_page(runs: Sequence[DefenceTables], folder: Path) -> None:
    """Write report.md to a folder and, if the defences were opened, left.png and .pdf (left_0, … for several settings)."""
    lines = [f"# Defence of {', '.join(sorted({run.info['model'] for run in runs}))}", ""]
    for number, (label, alike) in enumerate(conditions(runs).items()):
        lines += [f"# {label}", ""] if label else []
        lines += [*(f"- {sentence}" for sentence in sentences(alike)), ""]
        if any(len(run.attack) for run in alike):
            stem = f"left_{number}" if label else "left"
            lines += [f"![What is left of the attacker's ASR]({stem}.png)", ""]
            with own_style():
                save(figure(alike), folder / stem)
        for table in tables(alike):
            lines += [f"## {table.title}", "", *_markdown(table), "", table.caption, ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def _markdown(table: Table) -> list[str]:
    rows = [[table.corner, *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[str(name), *map(str, values)] for name, values in zip(table.frame.index, table.frame.to_numpy(), strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]
