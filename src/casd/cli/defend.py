"""`casd defend`: make one or several defences, and print what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

from casd.cli.cost import Cost
from casd.cli.quiet import quiet_libraries
from casd.cli.report import digest_of, short_path
from casd.utils.errors import CasdError
from casd.utils.progress import set_progress, track
from casd.utils.text import printable

if TYPE_CHECKING:
    from casd.config import DefendConfig
    from casd.pipeline.units import Needs, Unit, UnitReport


def defend(overrides: Sequence[str], published: Path | None = None) -> None:
    """Make every defence that the overrides describe, and print a report over all of them.

    Args:
        overrides: of the configuration of defences.
        published: put what is found into the page of results of this folder.

    Raises:
        CasdError: overrides that cannot work; or, after all defences were tried, the errors of those that failed.
    """
    from casd.config.compose import defences

    cost = Cost()
    configs = defences(overrides)
    if published:
        from casd.cli.publish import check_folder

        check_folder(published)
    set_progress(configs[0].runtime.progress)
    quiet_libraries()
    from casd.defence.page import sentences, tables, write_page
    from casd.defence.results import DefenceTables, conditions
    from casd.report.publish import publishing
    from casd.report.terminal import print_tables

    reports = _make_all(configs)
    folders = [Path(report.folder) for _, report in reports if not report.error]
    for _, report in reports:
        cost.add(len(report.executed), report.reused)
    if folders:
        runs = [DefenceTables.read(folder) for folder in folders]
        many = folders[0].parent / f"defences-{digest_of(folder.name for folder in folders)}"
        folder = folders[0] if len(folders) == 1 else many
        if len(folders) > 1:
            with publishing(folder, "the report over the defences") as begun:
                write_page(runs, begun)
        for label, alike in conditions(runs).items():
            if label:
                print(printable(f"\n=== {label} ==="))
            print_tables(tables(alike))
            print()
            for sentence in sentences(alike):
                print(printable(sentence))
        cost.say()
        print(printable(f"Report: {short_path((folder / 'report.md').absolute())}"))
        if (folder / "model").is_dir():
            print(printable(f"Cleaned model: {short_path((folder / 'model').absolute())}"))
        if published and len(folders) == len(configs):
            from casd.cli.publish import publish_defences

            publish_defences(runs, folder, overrides, published)
    failed = [f"{unit}: {report.error}" for unit, report in reports if report.error]
    if failed and len(configs) == 1:
        raise CasdError(reports[0][1].error)
    if failed:
        first = (
            f"{len(failed)} of {len(configs)} defences failed; the others are finished, and the same command reuses them."
            " Nothing is published of an incomplete set."
        )
        raise CasdError("\n  ".join([first, *failed]))


def _make_all(configs: Sequence[DefendConfig]) -> list[tuple[Unit, UnitReport]]:
    """Make defences where their engine says, each as one unit, and return their reports in the order of `configs`."""
    from casd.cli.worker import perform
    from casd.pipeline.schedule import perform_all
    from casd.pipeline.sweep import Told, engine_of, tell_unit
    from casd.pipeline.units import Unit

    units = [Unit("defence", config) for config in configs]
    engine = engine_of(configs)
    logs = Path(configs[0].runtime.output).absolute() / "logs"
    needs: Needs = dict.fromkeys(units, frozenset())
    done = _one_by_one(units) if engine.in_this_process else perform_all(needs, perform, engine, logs)
    reports, told = {}, set[Told]()
    with track("defences", len(units)) as advance, closing(done):  # type: ignore[type-var]
        for unit, report in done:
            reports[unit] = report
            reused = not (report.executed or report.error)
            if len(units) > 1 and not engine.in_this_process:
                tell_unit(unit, report, told, reused=reused)
            advance(reused=reused)
    return [(unit, reports[unit]) for unit in units]  # workers end in any order, and intervals depend on the order of runs


def _one_by_one(units: Sequence[Unit]) -> Iterator[tuple[Unit, UnitReport]]:
    """Make defences in this process, even if some fail."""
    from casd.defence.protocol import run_defence
    from casd.pipeline.sweep import reason
    from casd.pipeline.units import UnitReport

    for unit in units:
        try:
            made = run_defence(cast("DefendConfig", unit.config))
        except BaseException as error:  # `reason` raises Ctrl-C again
            yield unit, UnitReport(reason(unit.config, error))
        else:
            yield unit, UnitReport(executed=made.executed, folder=str(made.folder), reused=len(made.reused))
