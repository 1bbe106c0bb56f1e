"""The report as one self-contained HTML file: style and figures inside, no script, nothing fetched.

What a model generated is text from an untrusted source: everything passes through jinja2's escaping, and characters
that cannot be seen or that reorder a line are shown as their escape sequences.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd

from casd import __version__
from casd.errors import StoreError
from casd.report.drawing import Drawing
from casd.report.markup import Table, numeric_columns
from casd.report.statements import statements
from casd.report.tables import (
    asr_long_table,
    asr_table,
    casd_table,
    relation_table,
    specificity_table,
    states_table,
    summary_table,
    suppression_table,
    utility_table,
)
from casd.report.wording import prompts_per_cell, short_run_name
from casd.results import RunTables

LONGEST_TEXT: Final = 600
"""Characters of a prompt or generation that are shown."""
SAMPLES_SHOWN: Final = {"triggered": 2, "fake": 1, "clean": 1}
"""How many texts of each kind of prompt are shown per backdoor and state: the first ones, not chosen ones."""

HOW_TO_READ: Final = (
    "Attack success rate (ASR): the share of prompts after which a backdoor's behavior shows in the generated text, by that "
    "behavior's own test. Every prompt counts, empty and unclear generations as failures. Rates are fractions.",
    "Rows are what was removed, columns what was measured. “injected” is the model with all backdoors, before any removal.",
    "Intervals are Wilson 95 % intervals over prompts. They say nothing about other training runs: for that, compare seeds.",
    "Controls: “control:clean” is the same number of training steps on clean text only; “control:phantom” the removal of a "
    "trigger that was never injected. Net suppression is the suppression minus that of the same column under that control. "
    "What is left is suppression that the control does not show.",
    "A collapsed model no longer works on clean text. Its ASR is low too, which is no success: its numbers stand in "
    "parentheses, and means, counts and correlations leave it out.",
    "CASD, the Cross Activation Shift Distance, compares the changes that two removals made to the activations. Small: they "
    "changed the model alike. It comes from Bouger et al., “Backdoor Unlearning Generalization” (arXiv:2606.03785). The hook "
    "site, token position, averaging, normalization and evaluation text are this project's choices where the paper's text "
    "was not available. So are the models, triggers, targets and training settings.",
    "Relation: Spearman's ρ between distance and suppression over pairs, where the suppression is symmetrized and centered "
    "by column, because some backdoors are fragile under any removal. Pairs share removals, so p comes from a Mantel test, "
    "which permutes whole removals. The p-values are not corrected for looking at several variants and responses. A "
    "correlation is no proof of a cause, and its absence in few pairs no proof of none.",
)


@dataclass(frozen=True)
class Block:
    """A piece of a section; `kind` says which macro of the template shows `content`."""

    kind: str
    content: Any
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def run_html(tables: RunTables, drawings: Sequence[Drawing], pngs: Mapping[str, Path]) -> str:
    """The report of one run. `pngs` leads from a drawing's name to its file."""
    figures = {drawing.name: Block("figure", _figure(drawing, pngs)) for drawing in drawings}
    sections = [
        Section("summary", "In short", [Block("list", statements(tables))]),
        Section("asr", "Attack success rate", [_table(asr_table(tables)), *_present(figures, "asr_heatmap")]),
    ]
    sections[-1].blocks.append(_table(asr_long_table(tables), folded=True))
    if len(tables.transfer):
        section = Section("transfer", "Transfer: suppression net of the controls")
        section.blocks.extend([_table(suppression_table(tables, f"suppression_net_{c}")) for c in ("clean", "phantom")])
        values = ("suppression", "prob_suppression_net_clean", "prob_suppression_net_phantom")
        section.blocks.extend([_table(suppression_table(tables, value), folded=True) for value in values])
        if len(tables.specificity):
            section.blocks.append(_table(specificity_table([tables])))
        sections.append(section)
    if len(tables.casd):
        blocks = _present(figures, "casd_heatmap", "casd_by_layer")
        blocks += [_table(casd_table(tables, variant)) for variant in tables.headline]
        sections.append(Section("casd", "Cross Activation Shift Distance", blocks))
    relation = [_table(relation_table([tables]))] if len(tables.relation) else []
    if not relation:
        relation = [Block("paragraph", "No relation was computed.")]
    sections.append(Section("relation", "CASD and suppression", [*relation, *_present(figures, "casd_scatter")]))
    sections.append(Section("states", "Model states", [_table(states_table(tables))]))
    if len(tables.utility):
        sections[-1].blocks.append(_table(utility_table(tables), folded=True))
    if len(tables.samples):
        sections.append(_samples_section(tables))
    sections += [_reading_section(), *_origin_sections(tables.info)]
    facts = {
        "Model": tables.info["model"],
        "Objective": tables.info["objective"],
        "Seed": tables.info["seed"],
        "Backdoors": len(tables.backdoors),
        "Prompts per cell": prompts_per_cell(tables),
    }
    return _render(f"Backdoor removal and its transfer: {tables.info.get('run') or tables.info['model']}", facts, sections)


def sweep_html(
    runs: Sequence[RunTables],
    comparisons: Sequence[Table],
    drawings: Sequence[Drawing],
    pngs: Mapping[str, Path],
    folder: Path,
) -> str:
    """The report of a sweep: what its runs say together, then each of them, linked relative to `folder`, where it will lie."""
    figures = [Block("figure", _figure(drawing, pngs)) for drawing in drawings]
    sections = [Section("summary", "All runs", [*map(_table, comparisons), *figures, _table(summary_table(runs))])]
    if any(len(tables.specificity) for tables in runs):
        sections[0].blocks.append(_table(specificity_table(runs)))
    for number, tables in enumerate(runs, 1):
        info = tables.info
        section = Section(f"run-{number}", short_run_name(tables))
        section.blocks.extend([Block("list", statements(tables)), _table(asr_table(tables))])
        if len(tables.relation):
            section.blocks.append(_table(relation_table([tables])))
        section.blocks.append(_table(states_table(tables), folded=True))
        report = Path(info["folder"]) / "report.html"
        if report.is_file():
            target = Path(os.path.relpath(report, Path(folder).resolve())).as_posix()
            section.blocks.append(Block("link", target, title="The full report of this run"))
        sections.append(section)
    sections.append(_reading_section())
    facts = {
        key.capitalize() + "s": ", ".join(dict.fromkeys(str(tables.info[key]) for tables in runs))
        for key in ("model", "objective", "seed")
    }
    return _render(f"Backdoor removal and its transfer: {len(runs)} runs", {"Runs": len(runs)} | facts, sections)


def write_html(text: str, path: Path) -> Path:
    """Write a report; returns its path.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"The report {path} cannot be written: {error}. Free space or choose another folder.") from error
    return path


def visible(text: str, limit: int = LONGEST_TEXT) -> str:
    """Text as it can be shown: at most `limit` characters, invisible and reordering ones as escape sequences."""
    shown = "".join(
        character if character.isprintable() or character in "\n\u00a0\u202f" else _escape_sequence(character)
        for character in text[:limit]
    )
    return shown if len(text) <= limit else f"{shown} … ({len(text):,} characters)"


def _escape_sequence(character: str) -> str:
    return repr(character)[1:-1]


def _render(title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda value: visible(str(value), limit=1_000_000)
    template = environment.get_template("template.html.j2")
    return template.render(title=title, facts=facts, sections=sections, version=__version__)


def _table(table: Table, folded: bool = False) -> Block:
    content = {"table": table, "numeric": numeric_columns(table)}
    return Block("folded_table" if folded else "table", content, title=table.title)


def _figure(drawing: Drawing, pngs: Mapping[str, Path]) -> dict[str, str]:
    data = base64.b64encode(pngs[drawing.name].read_bytes()).decode("ascii")
    return {"alt": drawing.alt, "caption": drawing.title, "data": f"data:image/png;base64,{data}"}


def _present(figures: Mapping[str, Block], *names: str) -> list[Block]:
    return [figures[name] for name in names if name in figures]


def _samples_section(tables: RunTables) -> Section:
    """For each backdoor, the first generations of each state."""
    section = Section("samples", "What the models wrote")
    section.blocks.append(
        Block("paragraph", "The first prompts of each kind for each backdoor and model state, as generated, not chosen.")
    )
    order = {state: i for i, state in enumerate(tables.states["state"])}
    for backdoor in tables.backdoors:
        chosen = tables.samples[tables.samples["backdoor"] == backdoor]
        kept = [
            group.head(SAMPLES_SHOWN.get(str(probe), 1)) for (_, probe), group in chosen.groupby(["state", "probe"], sort=False)
        ]
        if not kept:
            continue
        rows = pd.concat(kept).sort_values("state", key=lambda column: column.map(order), kind="stable")
        records = [
            {
                "state": f"{row['state']} (collapsed)" if row["state"] in tables.collapsed else row["state"],
                "probe": row["probe"],
                "prompt": visible(str(row["prompt"])),
                "generated": visible(str(row["generated"])),
                "success": bool(row["success"]),
            }
            for row in rows.to_dict("records")
        ]
        section.blocks.append(Block("samples", records, title=backdoor))
    return section


def _reading_section() -> Section:
    return Section("reading", "How to read this", [Block("list", HOW_TO_READ)])


def _origin_sections(info: Mapping[str, Any]) -> list[Section]:
    """Where the numbers come from: timings, versions and stage keys, and the configuration."""
    section = Section("provenance", "Provenance")
    pairs = list(_flat(info.get("provenance") or {}))
    times = [
        (name, f"{value:.1f} s" if isinstance(value, float) else value) for name, value in _flat(info.get("timings") or {})
    ]
    section.blocks.extend([Block("pairs", found, title) for found, title in ((pairs, "Origin"), (times, "Times")) if found])
    section.blocks.extend([Block("code", info["config"], "Configuration")] if info.get("config") else [])
    return [section] if section.blocks else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
