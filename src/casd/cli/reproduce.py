"""`casd reproduce`: make the runs behind tables and figures of the paper, write these, and print what became of the claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casd.cli.cost import Cost
from casd.cli.report import short_path
from casd.cli.sweep import make_sweeps
from casd.utils.distributed import is_main
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown
from casd.utils.text import printable

if TYPE_CHECKING:
    from casd.reproduction.scales import Scale


def reproduce(
    names: Sequence[str],
    scale_name: str,
    overrides: Sequence[str] = (),
    *,
    verbose: bool = False,
    published: Path | None = None,
) -> None:
    """Make the runs that the exhibits need, write the exhibits, print the verdicts on their claims, and say what it cost.

    Args:
        names: of `casd.reproduction.catalogue.EXHIBITS`; or "all".
        scale_name: of `casd.reproduction.scales.scales`.
        overrides: of `runtime` and `engine`: nothing that changes a result.
        verbose: print the verdicts on each model and objective, too.
        published: put the verdicts into the page of results of this folder.

    Raises:
        CasdError: an unknown name or scale, an override that would change a result, or an error of a run.
    """
    from casd.cli.publish import check_folder, publish_reproduction
    from casd.report import print_tables, print_warning, read_runs
    from casd.reproduction.catalogue import EXHIBITS
    from casd.reproduction.page import PAGE, finished, verdicts_table, write_reproduction
    from casd.reproduction.scales import read_scale

    cost = Cost()
    if published:
        check_folder(published)
    _check_arguments(names, overrides, EXHIBITS)
    scale = read_scale(scale_name)
    chosen = _chosen(names, scale)
    run_sets = dict.fromkeys(EXHIBITS[name].run_set for name in chosen)
    sweeps = [(run_set, [*sweep, *overrides]) for run_set in run_sets for sweep in scale.sweeps[run_set]]
    description = f"reproduce {' '.join(names)}, {scale.name}"
    folders_of_sweeps, failure = make_sweeps([sweep for _, sweep in sweeps], description, cost)
    if failure:
        raise failure
    if not is_main():
        return
    folders: dict[str, list[Path]] = {}
    for (run_set, _), of_sweep in zip(sweeps, folders_of_sweeps, strict=True):
        folders.setdefault(run_set, []).extend(of_sweep)
    runs = {run_set: read_runs(paths) for run_set, paths in folders.items()}
    output = folders_of_sweeps[0][0].parents[1]
    target = output / "reproduce" / scale.name / ("all" if "all" in names else "-".join(chosen))
    verdicts = None if cost.executed else finished(chosen, runs, target)
    if verdicts is None:
        verdicts = write_reproduction(chosen, scale, runs, target)
    print_warning([tables for members in runs.values() for tables in members])
    print_tables([verdicts_table(verdicts if verbose else verdicts[verdicts["headline"]])])
    print(printable(f"\nReport: {short_path(target.absolute() / PAGE)}"))
    cost.say()
    if published:
        asked = ["all"] if "all" in names else chosen
        publish_reproduction(asked, chosen, scale.name, verdicts, runs, target, published)


def _chosen(names: Sequence[str], scale: Scale) -> list[str]:
    """Return the exhibits of these names, with "all" every one that the scale has runs for.

    Raises:
        ConfigError: the scale has no runs for one that is named.
    """
    for name in names:
        if name not in ("all", *scale.exhibits):
            raise ConfigError(f"scale={scale.name} has no runs for {name}; it has those for {', '.join(scale.exhibits)}.")
    return [name for name in scale.exhibits if name in names or "all" in names]


def _check_arguments(names: Sequence[str], overrides: Sequence[str], exhibits: Iterable[str]) -> None:
    """Raise ConfigError for a name that is no exhibit, and for an override that would change a result."""
    for name in names:
        if name not in ("all", *exhibits):
            raise unknown("table or figure", name, ("all", *exhibits))
    for override in overrides:
        if not override.lstrip("+").startswith(("runtime.", "runtime=", "engine.", "engine=")):
            raise ConfigError(
                f"reproduce takes configurations as they are; {override!r} would change them. Use casd sweep for that."
            )
