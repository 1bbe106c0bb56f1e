"""The short answer of a report: did removing one backdoor weaken the others, and did CASD tell which?

It is made from the tables by this rule. The rule and its thresholds are our choice, not the paper's.

- The measure is the suppression of the other backdoors' attack success rate (ASR) beyond that under the phantom control, or
  under the clean control where no phantom was measured, with its 95 % interval: over the backdoors of one run, over seeds and
  backdoors of several (`casd.analysis.comparison.compare_objectives`).
- "Yes": the interval is above zero. "Weakly": so it is, but the mean is below NEGLIGIBLE. "No": the interval ends below
  NEGLIGIBLE. "Not distinguishable from the control": any other interval. "Cannot say": no control was measured, or fewer than
  MIN_ANSWER removals are included in the means (`casd.analysis.inclusion`), or no other backdoor was measured.
- CASD "predicted which" if the Spearman correlation ρ of its first headline variant and the suppression is negative, with a
  Mantel p of at most SIGNIFICANT for these backdoors and, where ρ has a 95 % interval for others like them, one below zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from casd.analysis.collection import without_fakes
from casd.analysis.comparison import compare_objectives
from casd.analysis.conditions import flatten
from casd.analysis.grouping import POOLED, by_condition
from casd.analysis.predictors import rho_limits
from casd.analysis.results import RunTables
from casd.report.markup import Table, table_of
from casd.report.wording import (
    LOW_ASR,
    NEGLIGIBLE,
    SIGNIFICANT,
    correlation_sign,
    fraction,
    is_control,
    mean_with_interval,
    model_label,
    p_relation,
    run_count,
)

YES, WEAKLY, UNCLEAR, NO, CANNOT_SAY = "Yes", "Weakly", "Not distinguishable", "No", "Cannot say"
VERDICTS: Final = (YES, WEAKLY, UNCLEAR, NO, CANNOT_SAY)
MIN_ANSWER: Final = 3
"""Minimum number of included removals for a verdict: an interval over two backdoors, which may share a target, says little."""
SHOWN: Final = 9
"""Maximum number of conditions in the table of answers."""
TINY: Final = 100_000_000
"""Parameters below which a model from random weights is called tiny."""


@dataclass(frozen=True)
class Answer:
    """The answer for one condition.

    Attributes:
        record: its row of `compare_objectives`.
        casd: its row of `RunTables.relation` or of the predictors, for the first headline variant; empty if there is none.
        caveats: what limits the answer, a sentence each.
    """

    record: Mapping[Any, Any]
    casd: Mapping[Any, Any]
    caveats: Sequence[str]

    @property
    def control(self) -> str:
        """The control that the suppression is net of: "phantom", "clean", or "" if neither counts."""
        return next((name for name in ("phantom", "clean") if not pd.isna(self.record[f"suppression_net_{name}"])), "")

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        net = f"suppression_net_{self.control}"
        if self.record["backdoors"] < MIN_ANSWER or not self.control or pd.isna(low := self.record[f"{net}_low"]):
            return CANNOT_SAY
        if low > 0:
            return YES if self.record[net] >= NEGLIGIBLE else WEAKLY
        return NO if self.record[f"{net}_high"] < NEGLIGIBLE else UNCLEAR

    @property
    def net(self) -> str:
        """The suppression net of the control, with its interval; "" if no control counts."""
        if not self.control:
            return ""
        text = mean_with_interval(self.record, f"suppression_net_{self.control}")
        notes = ", ".join(filter(None, ("of clean" if self.control == "clean" else "", self._controlled)))
        return f"{text} ({notes})" if notes else text

    @property
    def _controlled(self) -> str:
        """In how many runs the control counts, such as "2 of 3 runs"; "" if in all that have a suppression."""
        count, runs = self.record[f"suppression_net_{self.control}_runs"], self.record["suppression_runs"]
        return f"{count} of {run_count(runs)}" if count < runs else ""

    @property
    def lead(self) -> str:
        """The verdict as the answer's first words."""
        more = {UNCLEAR: " from the control", CANNOT_SAY: ""}.get(self.verdict, ", here")
        return f"{self.verdict}{more}."

    @property
    def text(self) -> str:
        """The sentences after the verdict."""
        return " ".join(filter(None, (self._transfer(), self._prediction(), *self.caveats)))

    @property
    def predicted(self) -> bool | None:
        """Whether CASD predicted which backdoors were suppressed; None if that was not tested."""
        sign = correlation_sign(self.casd)
        return None if sign is None else sign < 0

    def _transfer(self) -> str:
        record, control = self.record, self.control
        if pd.isna(suppression := record["suppression"]):
            if record["included"] != record["removals"]:
                return ""
            return "No other backdoor was compared: none was measured, or the injection established none."
        text = f"Removing one backdoor {_moved(suppression)}"
        if not control:
            return f"{text}, but no control was measured that this could be compared with."
        name = "phantom" if control == "phantom" else f"{control} control"
        net = record[f"suppression_net_{control}"]
        interval = mean_with_interval(record, f"suppression_net_{control}")
        if self._controlled:  # a difference from the mean over all runs would be one of different runs
            return f"{text}; net of the {name}, which counts in {self._controlled}, by {interval}."
        by_control = suppression - net
        if suppression < 0 or net < 0:
            return f"{text}; the {name} {_moved(by_control)}. Net of that the removals lowered them by {interval}."
        raised = f", which itself raised them by {fraction(-by_control)}" if by_control < -0.005 else ""
        return f"{text}, {interval} more than the {name}{raised}."

    def _prediction(self) -> str:
        sign = correlation_sign(self.casd)
        if sign is None:
            return "" if self.verdict == CANNOT_SAY else "CASD could not be tested as a predictor."
        rho, p = self.casd["rho"], self.casd["p_value"]
        if sign:
            what = "predicted which" if sign < 0 else "pointed the wrong way"
        elif rho < 0 and p <= SIGNIFICANT:
            what = "predicted which among these backdoors, perhaps not among others"
        else:
            what = "did not predict which"
        return f"CASD {what} (ρ {mean_with_interval(self.casd, 'rho')}, p {p_relation(p).removeprefix('= ')})."


def _moved(suppression: float) -> str:
    return f"{'lowered' if suppression >= 0 else 'raised'} the others by {fraction(abs(suppression))}"


def run_answer(tables: RunTables) -> Answer:
    """The answer for one run."""
    [record] = compare_objectives([tables]).to_dict("records")
    frame = tables.relation[tables.relation["response"] == "suppression"]
    casd = _first(frame, "variant", tables.headline)
    return _answer([tables], record, casd | rho_limits(tables, casd["variant"]) if casd else casd)


def sweep_answers(runs: Sequence[RunTables], objectives: pd.DataFrame, predictors: pd.DataFrame) -> list[Answer]:
    """The answers for each condition of several runs and for those pooled over models, the worst first.

    Args:
        runs: finished runs.
        objectives: their `compare_objectives`.
        predictors: their `predictor_table`.
    """
    members = by_condition(runs)
    found = []
    for record in objectives.to_dict("records"):
        model, objective = record["model"], record["objective"]
        if is_control(objective):
            continue
        pooled = [tables for (_, name), group in members.items() if name == objective for tables in group]
        own = predictors[(predictors["model"] == model) & (predictors["objective"] == objective)]
        of = pooled if model == POOLED else members[model, objective]
        found.append(_answer(of, record, _first(own[own["role"] == "headline"], "predictor", of[0].headline)))
    return sorted(found, key=lambda answer: -VERDICTS.index(answer.verdict))


def in_short(answers: Sequence[Answer]) -> tuple[str, str]:
    """The answer over all conditions: its first words, and the sentences after them."""
    if len(answers) == 1:
        return answers[0].lead, answers[0].text
    single = [answer for answer in answers if answer.record["model"] != POOLED]
    if not single:
        return f"{CANNOT_SAY}.", "No run removed a backdoor."
    counts = Counter(answer.verdict for answer in single)
    first, *others = [f"{verdict} in {counts[verdict]}" for verdict in VERDICTS if counts[verdict]]
    tested = [answer for answer in single if answer.predicted is not None]
    predicted = sum(bool(answer.predicted) for answer in tested)
    texts = [f"{'; '.join(text[0].lower() + text[1:] for text in others)}."] if others else []
    texts += [f"CASD predicted which in {predicted} of {len(tested)}."] if tested else []
    texts += [text for text in single[0].caveats if all(text in answer.caveats for answer in single)]
    return f"{first} of {len(single)} conditions{';' if others else '.'}", " ".join(texts)


def answers_table(answers: Sequence[Answer]) -> Table:
    """The answers of at most SHOWN conditions. If there are more, those over all models come first, then the worst."""
    shown = sorted(answers, key=lambda answer: answer.record["model"] != POOLED) if len(answers) > SHOWN else answers
    rows = [
        {
            "model": model_label(answer.record["model"]),
            "objective": str(answer.record["objective"]),
            "answer": answer.verdict,
            "own ASR": fraction(answer.record["own_asr"]),
            "others, net of phantom": answer.net,
            "CASD: ρ": mean_with_interval(answer.casd, "rho"),
            "removals": f"{answer.record['included']} of {answer.record['removals']}",
        }
        for answer in shown[:SHOWN]
    ]
    rest = f" {len(answers) - SHOWN} more are in the table of objectives." if len(answers) > SHOWN else ""
    caption = "Did removing one backdoor lower the others' ASR, more than the phantom did? With 95 % intervals."
    return table_of(rows, name="answers", title="The answer in each condition", caption=f"{caption}{rest}")


def _answer(runs: Sequence[RunTables], record: Mapping[Any, Any], casd: Mapping[Any, Any]) -> Answer:
    return Answer(record, casd, _caveats(runs, record))


def _first(frame: pd.DataFrame, column: str, variants: Sequence[str]) -> dict[Any, Any]:
    """The row of the first of the variants that is in the frame."""
    rows = {str(row[column]): row for row in frame.to_dict("records")}
    return next((rows[variant] for variant in variants if variant in rows), {})


def _caveats(runs: Sequence[RunTables], record: Mapping[Any, Any]) -> list[str]:
    """What limits an answer: seeds, size of the model, exclusions, removals that left something, missing controls."""
    included, removals, own = record["included"], record["removals"], record["own_asr"]
    texts = [f"{'One seed' if record['seeds'] == 1 else str(record['seeds']) + ' seeds'}, {_size(runs)}."]
    if removals < 2:
        texts.append("Only one backdoor was removed.")
    elif included < removals:
        texts.append(f"{included} of {removals} removals count ({record['excluded']}).")
    if own > LOW_ASR:
        texts.append(f"The removed backdoors themselves kept an ASR of {fraction(own)}.")
    measured = {"clean control": record["clean_control"], "phantom": record["phantom_control"]}
    missing = [name for name, value in measured.items() if pd.isna(value)] if included else []
    unmatched = dict.fromkeys(name for tables in runs for name in without_fakes(tables))
    if any(without_fakes(tables) == tables.backdoors for tables in runs):
        missing.append("fake triggers")
    elif unmatched:
        missing.append(f"fake triggers of {', '.join(unmatched)}")
    return [*texts, f"Missing: {', '.join(missing)}."] if missing else texts


def _size(runs: Sequence[RunTables]) -> str:
    """The size of the models as far as the configuration tells it, else their names."""
    names = dict.fromkeys(str(tables.info["model"]) for tables in runs)
    configs = [flatten(str(tables.info.get("config") or "")) for tables in {t.info["model"]: t for t in runs}.values()]
    if all(config.get("model.source") == "scratch" and _parameters(config) < TINY for config in configs):
        return "tiny model" if len(names) == 1 else f"{len(names)} tiny models"
    return f"model {' and '.join(names)}"


def _parameters(config: Mapping[str, Any]) -> float:
    """About how many parameters a transformer has: 12 · layers · features², as in GPT."""
    layers, features = (config.get(f"model.architecture.{name}") for name in ("num_hidden_layers", "hidden_size"))
    return 12 * layers * features**2 if isinstance(layers, int) and isinstance(features, int) else float("inf")
