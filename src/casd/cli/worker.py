"""What a worker of an engine does with a unit of a run. Importing this module imports all that it needs."""

from __future__ import annotations

from casd.cli.quiet import quiet_libraries
from casd.pipeline import worker
from casd.pipeline.units import Unit, UnitReport
from casd.planning.check import check


def perform(unit: Unit) -> UnitReport:
    """Check that the run fits into memory, and make the stages of the unit that are not in the store."""
    quiet_libraries()
    return worker.perform(unit, check)
