"""The sections of a run's and of a sweep's HTML page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from casd.analysis.collection import DETAILED_RUNS, without_fakes
from casd.analysis.conditions import leaves
from casd.analysis.results import RunTables
from casd.report.answer import answers_table, in_short, run_answer
from casd.report.comparisons import Comparisons
from casd.report.markup import Table
from casd.report.matrices import asr_table, casd_table, suppression_table
from casd.report.page import Block, Section, matrices_block, render, table_block, warning_blocks
from casd.report.persistence import persistence_statements, persistence_table
from casd.report.reading import reading_section
from casd.report.samples import samples_of
from casd.report.settings import backdoors_table, settings_table, triggers
from casd.report.statements import control_statements, observations
from casd.report.tables import harm_table, relation_table, specificity_table, states_table, utility_table
from casd.report.wording import prompts_per_cell, run_name, sentence, short_run_name

QUESTION: Final = (
    "Several backdoors were put into one language model and removed one at a time. Did that weaken the others, which nobody "
    "targeted? Does the Cross Activation Shift Distance (CASD) between two removals tell which?"
)
RUN_FIGURES: Final = ("casd_scatter", "casd_by_layer", "learning_curves", "persistence")
"""The figures in a run's page; the matrices are in it as tables."""
SWEEP_FIGURES: Final = ("objectives",)
NO_FAKES: Final = (
    "No fake triggers were evaluated (evaluation.fake_triggers is 0): this control is missing, and these rates do not tell a "
    "backdoor that listens to its trigger from one that fires on anything unusual."
)

SOME_FAKES: Final = "No fake trigger matches the trigger of {}: for these backdoors this control is missing."


def run_html(tables: RunTables, figures: Mapping[str, Block]) -> str:
    """The page of one run. `figures` are the blocks of its figures (RUN_FIGURES) by name."""
    info = tables.info
    sections = [
        Section("summary", "In short", _summary(tables)),
        _setting_section(tables),
        _matrices_section(tables),
        *_net_sections(tables),
        _relation_section(tables, figures),
        _distances_section(tables, figures),
        _samples_section(tables),
        Section("curves", "Learning curves", _present(figures, "learning_curves")),
        _persistence_section(tables, figures),
        _states_section(tables),
        reading_section(),
        _origin_section(info),
    ]
    facts = {
        "Model": info["model"],
        "Objective": info["objective"],
        "Seed": info["seed"],
        "Backdoors": len(tables.backdoors),
        "Prompts per cell": prompts_per_cell(tables),
    }
    title = f"Backdoor removal and its transfer: {info.get('run') or info['model']}"
    return render(title, QUESTION, facts, sections, in_short([run_answer(tables)]))


def sweep_html(
    runs: Sequence[RunTables],
    comparisons: Comparisons,
    overview: Sequence[Table],
    figures: Mapping[str, Block],
    folder: Path,
) -> str:
    """The page of a sweep: its answer, comparisons over its runs, then each run. Links are relative to `folder`, the page's
    final place."""
    blocks = warning_blocks(runs)
    if len(comparisons.answers) > 1:
        blocks.append(table_block(answers_table(comparisons.answers)))
    compared = [
        *map(table_block, comparisons.tables),
        *_present(figures, *SWEEP_FIGURES),
        *map(table_block, overview),
    ]
    sections = [Section("summary", "In short", blocks), Section("comparisons", "All runs", compared)]
    if len(runs) <= DETAILED_RUNS:
        sections += [_one_of_several(number, tables, folder) for number, tables in enumerate(runs, 1)]
    else:
        pages = [(short_run_name(tables), link_to(tables, folder)) for tables in runs]
        links = [Block("link", target, title=name) for name, target in pages if target]
        sections.append(Section("runs", "The full report of each run", links))
    sections.append(reading_section(several=True))
    facts = {
        key.capitalize() + "s": ", ".join(dict.fromkeys(str(tables.info[key]) for tables in runs))
        for key in ("model", "objective", "seed")
    }
    title = f"Backdoor removal and its transfer: {len(runs)} runs"
    return render(title, QUESTION, {"Runs": len(runs)} | facts, sections, in_short(comparisons.answers))


def _one_of_several(number: int, tables: RunTables, folder: Path) -> Section:
    """One of several runs: its answer, matrices, relation and states."""
    section = Section(f"run-{number}", short_run_name(tables))
    section.blocks.extend([Block("answer", in_short([run_answer(tables)])), _asr_and_casd(tables)])
    if len(tables.relation):
        section.blocks.append(_own_table(relation_table([tables]), tables))
    section.blocks.append(_own_table(states_table(tables), tables, folded=True))
    if target := link_to(tables, folder):
        section.blocks.append(Block("link", target, title="The full report of this run"))
    return section


def link_to(tables: RunTables, folder: Path) -> str:
    """The path from `folder` to the run's own page; "" if it has none."""
    report = Path(tables.info["folder"]) / "report.html"
    return Path(os.path.relpath(report, Path(folder).resolve())).as_posix() if report.is_file() else ""


def _summary(tables: RunTables) -> list[Block]:
    """The observations behind the answer of a run, and folded what is known of its controls."""
    blocks = [*warning_blocks([tables]), Block("list", observations(tables))]
    if tables.states_of("control"):
        blocks.append(Block("list", control_statements(tables), "The controls, one by one", folded=True))
    return blocks


def _setting_section(tables: RunTables) -> Section:
    config = str(tables.info.get("config") or "")
    chosen = ", ".join(dict.fromkeys(tables.tuning.loc[tables.tuning["chosen"].astype(bool), "setting"]))
    shown = [table for table in (settings_table(config, chosen), backdoors_table(config)) if len(table)]
    return Section("setting", "The setting", [table_block(table) for table in shown])


def _matrices_section(tables: RunTables) -> Section:
    prompt_sets = [prompt_set for prompt_set in ("fake", "near", "clean") if (tables.asr["prompt_set"] == prompt_set).any()]
    blocks = [_asr_and_casd(tables)]
    if prompt_sets:
        title = "Where the behaviors should not show: fake triggers, parts of a trigger, clean prompts"
        blocks.append(_matrices(tables, [asr_table(tables, prompt_set) for prompt_set in prompt_sets], title, folded=True))
    if "fake" not in prompt_sets:
        blocks.append(Block("paragraph", NO_FAKES))
    elif missing := without_fakes(tables):
        blocks.append(Block("paragraph", SOME_FAKES.format(", ".join(missing))))
    return Section("transfer", "What remains after each removal, and how similar the removals are", blocks)


def _net_sections(tables: RunTables) -> list[Section]:
    """Suppression net of the controls, where more than the injected model was measured."""
    if not len(tables.transfer):
        return []
    net = [suppression_table(tables, f"suppression_net_{control}") for control in ("clean", "phantom")]
    section = Section("net", "Suppression net of the controls", [_matrices(tables, net)])
    for title, values in (
        ("Suppression as it is, without the controls taken off", ["suppression", "prob_suppression"]),
        (
            "Suppression of the first token's probability, net of the controls",
            ["prob_suppression_net_clean", "prob_suppression_net_phantom"],
        ),
    ):
        section.blocks.append(_matrices(tables, [suppression_table(tables, value) for value in values], title, folded=True))
    if len(tables.specificity):
        section.blocks.append(_own_table(specificity_table([tables]), tables))
    return [section]


def _relation_section(tables: RunTables, figures: Mapping[str, Block]) -> Section:
    blocks = _present(figures, "casd_scatter")
    if len(tables.relation):
        blocks.append(_own_table(relation_table([tables]), tables))
    else:
        blocks.append(Block("paragraph", "No relation was computed."))
    return Section("relation", "CASD and suppression", blocks)


def _distances_section(tables: RunTables, figures: Mapping[str, Block]) -> Section:
    others = [casd_table(tables, variant) for variant in tables.headline[1:]]
    blocks = [_matrices(tables, others)] if any(map(len, others)) else []
    return Section("casd", "CASD: by layer, and its other variant", [*_present(figures, "casd_by_layer"), *blocks])


def _samples_section(tables: RunTables) -> Section:
    """The first generations of each backdoor, before and after its removal."""
    found = samples_of(tables, triggers(str(tables.info.get("config") or "")))
    if not found:
        return Section("samples", "")
    note = "The first prompts of each backdoor with their continuations, not selected. Left: the injected model. Right: the "
    note += "model after the backdoor's removal."
    blocks = [Block("samples", samples, title=name or "A clean prompt") for name, samples in found.items()]
    return Section("samples", "What the models wrote", [Block("paragraph", note), *blocks])


def _persistence_section(tables: RunTables, figures: Mapping[str, Block]) -> Section:
    blocks = []
    if len(tables.persistence):
        blocks = [Block("list", persistence_statements(tables)), *_present(figures, "persistence")]
        blocks.append(_own_table(persistence_table([tables]), tables))
    return Section("persistence", "Does it last?", blocks)


def _states_section(tables: RunTables) -> Section:
    states = tables.states[tables.states["collapsed"].astype(bool)]
    reasons = [f"{row['state']}: {row['collapse_reason']}." for row in states.to_dict("records")]
    section = Section("states", "Model states, and what collapsed")
    section.blocks.append(Block("list", reasons) if reasons else Block("paragraph", "No model collapsed."))
    section.blocks.append(_own_table(states_table(tables), tables))
    if len(harm := harm_table(tables)):
        section.blocks.append(_own_table(harm, tables))
    if len(tables.utility):
        section.blocks.append(_own_table(utility_table(tables), tables, folded=True))
    return section


def _origin_section(info: Mapping[str, Any]) -> Section:
    """Provenance: versions and stage keys, times, and the configuration."""
    found = [(name, str(value)) for name, value in leaves(info.get("provenance") or {}).items()]
    times = [
        (name, f"{value:.1f} s" if isinstance(value, float) else value)
        for name, value in leaves(info.get("timings") or {}).items()
    ]
    blocks = [Block("names", pairs, title) for pairs, title in ((found, "Made with"), (times, "Time taken")) if pairs]
    if info.get("config"):
        blocks.append(Block("code", info["config"], "The whole configuration", folded=True))
    return Section("provenance", "Versions, times, configuration", blocks)


def _asr_and_casd(tables: RunTables) -> Block:
    """The two main matrices: ASR and the first headline CASD."""
    return _matrices(tables, [asr_table(tables), *(casd_table(tables, variant) for variant in tables.headline[:1])])


def _matrices(tables: RunTables, matrices: Iterable[Table], title: str = "", *, folded: bool = False) -> Block:
    return matrices_block([_without_run(matrix, tables) for matrix in matrices], title, folded=folded)


def _own_table(table: Table, tables: RunTables, *, folded: bool = False) -> Block:
    return table_block(_without_run(table, tables), folded=folded)


def _without_run(table: Table, tables: RunTables) -> Table:
    """The table with a caption that does not name the run, for the run's own page."""
    return replace(table, caption=table.caption.removeprefix(f"{sentence(run_name(tables.info))}. "))


def _present(figures: Mapping[str, Block], *names: str) -> list[Block]:
    return [figures[name] for name in names if name in figures]
