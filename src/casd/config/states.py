"""The states of the one model that a run measures, by name.

A state is the injected model, or that model after one removal. A removal is named after the backdoor it removed; the
controls are removals of nothing that was injected, and their names begin with `control:`.
"""

from __future__ import annotations

from typing import Literal

CONTROL_PREFIX = "control:"
"""No backdoor's name begins so, nor is one called "injected": states are told apart by their names."""

INJECTED = "injected"
"""The model with all backdoors, before any removal."""
CLEAN_CONTROL = CONTROL_PREFIX + "clean"
"""After as many steps on clean text only."""
PHANTOM_CONTROL = CONTROL_PREFIX + "phantom"
"""After the removal of a trigger that was never injected; several phantoms have names that begin so."""

SHUFFLED_CONTROL = CONTROL_PREFIX + "shuffled"
"""After a removal with other targets; a backdoor's name follows."""
REPEAT_CONTROL = CONTROL_PREFIX + "repeat"
"""After a removal that was done before, with other documents; a backdoor's name follows."""

StateKind = Literal["injected", "removal", "control"]


def kind_of(state: str) -> StateKind:
    """Whether a state is the "injected" model, the "removal" of a backdoor, or a "control"."""
    if state == INJECTED:
        return "injected"
    return "control" if state.startswith(CONTROL_PREFIX) else "removal"


def removed_backdoor(state: str) -> str:
    """The backdoor whose trigger a removal, its repeat or its shuffled control was trained on; "" if none was injected."""
    for control in (REPEAT_CONTROL, SHUFFLED_CONTROL):
        if state.startswith(f"{control}:"):
            return state.removeprefix(f"{control}:")
    return "" if kind_of(state) != "removal" else state
