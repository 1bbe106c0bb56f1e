"""`casd defend`: make one or several defences, and print what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from casd.cli.cost import Cost
from casd.cli.quiet import quiet_libraries
from casd.cli.report import short_path
from casd.utils.errors import CasdError
from casd.utils.progress import say, set_progress
from casd.utils.text import printable


def defend(overrides: Sequence[str]) -> None:
    """Make every defence that the overrides describe, and print a report over all of them.

    Raises:
        CasdError: overrides that cannot work; or, after all defences were tried, the errors of those that failed.
    """
    from casd.config.compose import defences

    cost = Cost()
    configs = defences(overrides)
    set_progress(configs[0].runtime.progress)
    quiet_libraries()
    from casd.defence.page import sentences, tables, write_page
    from casd.defence.protocol import run_defence
    from casd.defence.results import DefenceTables
    from casd.report.publish import publishing
    from casd.report.terminal import print_tables

    folders, failed = [], []
    for number, config in enumerate(configs, 1):
        if len(configs) > 1:
            say(f"Defence {number} of {len(configs)}: {config.model.name}, seed {config.seed}.")
        try:
            finished = run_defence(config)
        except CasdError as error:
            if len(configs) == 1:
                raise
            failed.append(f"defence {number} ({config.model.name}, seed {config.seed}): {error}")
            continue
        folders.append(finished.folder)
        cost.add(finished.executed, finished.reused)
    if folders:
        runs = [DefenceTables.read(folder) for folder in folders]
        folder = folders[0] if len(folders) == 1 else _folder_of(folders)
        if len(folders) > 1:
            with publishing(folder, "the report over the defences") as begun:
                write_page(runs, begun)
        print_tables(tables(runs))
        print()
        for sentence in sentences(runs):
            print(printable(sentence))
        cost.say()
        print(printable(f"Report: {short_path((folder / 'report.md').absolute())}"))
        if (folder / "model").is_dir():
            print(printable(f"Cleaned model: {short_path((folder / 'model').absolute())}"))
    if failed:
        raise CasdError(f"{len(failed)} of {len(configs)} defences failed: {'; '.join(failed)}")


def _folder_of(folders: Sequence[Path]) -> Path:
    names = " ".join(sorted(folder.name for folder in folders))
    return folders[0].parent / f"defences-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
