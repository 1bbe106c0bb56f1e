"""Keep results in a repository: small CSV files of their tables, and a Markdown page that is made from these files.

`publish` writes `FOLDER/results/NAME/` (a CSV file per table, figures as PNG, and `section.json`) and puts what `section_text`
makes of these files into `FOLDER/RESULTS.md`, between the lines `<!-- results: NAME -->` and `<!-- end: NAME -->`. The text
outside these lines is not changed, so a page can have an introduction and sections of other commands.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.report.files import to_markdown
from casd.report.markup import Table
from casd.utils.atomic import unfinished_beside, write_text
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError, StoreError
from casd.utils.sealed import read_json

PAGE: Final = "RESULTS.md"
FOLDER: Final = "results"
INFO: Final = "section.json"
_NO_RESULT: Final = ("runtime.", "engine.", "engine=")
"""Beginnings of overrides that change no result, and are left out of the command that a section gives."""
_UNFOLDED_ROWS: Final = 20
"""Tables of more rows are folded in the page."""
_OF_INJECTION: Final = ("corpus", "base", "inject")
"""Stages that runs of one injection share."""


@dataclass(frozen=True, eq=False)
class ResultSection:
    """What a command found, as it is published.

    Attributes:
        name: of its folder and of its marks in the page: letters, digits, "." and "-".
        title: its heading.
        command: the arguments of `casd` that make it.
        sentences: what the numbers say, made by rule.
        tables: its tables.
        origin: where its numbers come from, as of `origin_of`.
        figures: PNG files by the text for readers who cannot see them.
    """

    name: str
    title: str
    command: Sequence[str]
    sentences: Sequence[str]
    tables: Sequence[Table]
    origin: Mapping[str, Any]
    figures: Mapping[str, Path] = field(default_factory=dict)


_COMMIT: Final = re.compile(r"\b([0-9a-f]{40})(-dirty)?")


def origin_of(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return where the numbers of runs come from: runs, commits, versions, hours of their stages, and this machine.

    Runs of one injection share it, and its hours are counted once; so are those of a run that is given twice.

    Args:
        infos: `info` of the tables of runs or defences.
    """
    provenance = [info.get("provenance") or {} for info in infos]
    seconds: dict[tuple[str, str], float] = {}
    for number, (info, made) in enumerate(zip(infos, provenance, strict=True)):
        keys = made.get("stages") or {}
        for stage, value in (info.get("timings") or {}).items():
            key = keys.get("inject" if stage in _OF_INJECTION else "score", f"run {number}")
            seconds[stage, key] = float(value)

    def every(name: str) -> str:
        return ", ".join(sorted({str(each[name]) for each in provenance if each.get(name)})) or "not known"

    names = {name: every(name) for name in ("casd", "torch", "transformers")}
    found = {commit for each in provenance for commit in _COMMIT.findall(str(each.get("casd_commit")))}
    commits = [commit[:10] + dirty for commit, dirty in sorted(found)]
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    return {
        "runs": len(infos),
        "commit": ", ".join(commits) or "not known",
        **names,
        "hours": sum(seconds.values()) / 3600,
        "machine": machine,
    }


def publish(section: ResultSection, folder: Path) -> Path:
    """Write the files of a section, and put its text into the page; returns the page.

    Raises:
        StoreError: a file cannot be written, or the page has only one of the section's two marks.
    """
    folder = Path(folder)
    page = folder / PAGE
    with explaining_disk_errors("results", folder):
        _check_marks(_page_text(page), section.name, page)
        target = folder / FOLDER / section.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_beside(target) as begun:
            _write(section, begun)
            shutil.rmtree(target, ignore_errors=True)
            begun.rename(target)
        # Read again, since another command may have published meanwhile.
        write_text(page, with_section(_page_text(page), section.name, section_text(target)))
    return page


def _page_text(page: Path) -> str:
    return page.read_text(encoding="utf-8") if page.exists() else "# Results\n"


def check_folder(folder: Path) -> None:
    """Check, before anything is computed, that results can be published in a folder; it may not exist yet.

    Raises:
        ConfigError: it is a file, or below one.
    """
    existing = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"--publish {folder}: {existing} is a file; name a folder.")


def section_text(stored: Path) -> str:
    """Return the Markdown of a section, from its stored files alone.

    Raises:
        StoreError: a file is missing or damaged.
    """
    info = read_json(stored / INFO)
    tables = [_read_table(stored, entry) for entry in info["tables"]]
    origin = info["origin"]
    made = (
        f"{origin['runs']} {'run' if origin['runs'] == 1 else 'runs'}, commit {origin['commit']}, torch {origin['torch']},"
        f" transformers {origin['transformers']}; {origin['hours']:.1f} hours of stages; {origin['machine']}."
    )
    parts = [f"## {info['title']}", f"```console\n$ casd {shlex.join(info['command'])}\n```", made]
    if info["sentences"]:
        parts.append("\n".join(f"- {sentence}" for sentence in info["sentences"]))
    parts += [f"![{alt}]({FOLDER}/{stored.name}/{name})" for name, alt in info["figures"].items()]
    parts += [_shown(table) for table in tables]
    return "\n\n".join(parts) + "\n"


def _shown(table: Table) -> str:
    """Return a table in Markdown: its caption, and its rows, which a reader of the page opens where there are many."""
    text = to_markdown(table).strip()
    if len(table) <= _UNFOLDED_ROWS:
        return text
    caption, _, rows = text.partition("\n\n")
    return f"{caption}\n\n<details>\n<summary>{len(table)} rows</summary>\n\n{rows}\n\n</details>"


def sections_of(page: str) -> dict[str, str]:
    """Return the text of each published section of a page, by name."""
    found = re.finditer(r"^<!-- results: (\S+) -->\n(.*?)^<!-- end: \1 -->$", page, flags=re.MULTILINE | re.DOTALL)
    return {match[1]: match[2] for match in found}


def with_section(page: str, name: str, text: str) -> str:
    """Return a page with the text of a section replaced, or added at the end."""
    begin, end = _marks(name)
    whole = f"{begin}\n{text}{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n{whole}\n"
    before, _, rest = page.partition(begin)
    return before + whole + rest.partition(end)[2]


def without_settings_of_the_machine(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those that change no result."""
    return [override for override in overrides if not override.lstrip("+").startswith(_NO_RESULT)]


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- results: {name} -->", f"<!-- end: {name} -->"


def _check_marks(page: str, name: str, path: Path) -> None:
    begin, end = _marks(name)
    if (begin in page) != (end in page) or page.count(begin) > 1:
        raise StoreError(f"{path} must have the lines {begin!r} and {end!r} once each, or neither of them; put them right.")


def _write(section: ResultSection, folder: Path) -> None:
    tables = []
    for table in section.tables:
        groups = list(table.groups) or [""] * len(table)
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["group", table.corner, *table.columns])
            rows.writerows(zip(groups, table.labels, *table.frame.to_numpy().T.tolist(), strict=True))
        entry: dict[str, Any] = {"name": table.name, "title": table.title, "caption": table.caption}
        if table.bold is not None:
            entry["bold"] = [[int(row), int(column)] for row, column in np.argwhere(table.bold)]
        tables.append(entry)
    figures = {}
    for alt, figure in section.figures.items():
        shutil.copyfile(figure, folder / figure.name)
        figures[figure.name] = alt
    info = {
        "title": section.title,
        "command": list(section.command),
        "sentences": list(section.sentences),
        "tables": tables,
        "figures": figures,
        "origin": dict(section.origin),
    }
    write_text(folder / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n")


def _read_table(stored: Path, entry: Mapping[str, Any]) -> Table:
    path = stored / f"{entry['name']}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            (_, corner, *columns), *rows = csv.reader(file)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Publish the section {stored.name} again.") from error
    frame = pd.DataFrame(
        [row[2:] for row in rows],
        index=pd.Index([row[1] for row in rows], dtype=object, name=corner),
        columns=pd.Index(columns, dtype=object),
        dtype=object,
    )
    groups = [row[0] for row in rows]
    bold = np.zeros(frame.shape, dtype=bool)
    for row, column in entry.get("bold", ()):
        bold[row, column] = True
    return Table(entry["name"], entry["title"], entry["caption"], frame, groups if any(groups) else (), bold=bold)
