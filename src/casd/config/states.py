"""Names of the states of the model that a run measures.

A state is the injected model, or that model after one removal or control. A removal is named after the backdoor that it
removes; the names of controls begin with `control:`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

CONTROL_PREFIX = "control:"
"""Prefix of controls. No backdoor's name begins with it or is "injected", so that the names of states are unique."""

INJECTED = "injected"
"""The model with all backdoors, before any removal."""
CLEAN_CONTROL = CONTROL_PREFIX + "clean"
"""The model after as many steps on clean text only."""
PHANTOM_CONTROL = CONTROL_PREFIX + "phantom"
"""The model after the removal of a trigger that was never injected, made like a real one; prefix of the names of others."""

SHUFFLED_CONTROL = CONTROL_PREFIX + "shuffled"
"""Prefix, before a backdoor's name: the model after a removal with other targets."""
REPEAT_CONTROL = CONTROL_PREFIX + "repeat"
"""Prefix, before a backdoor's name: the model after the same removal with other documents."""

StateKind = Literal["injected", "removal", "control"]


def kind_of(state: str) -> StateKind:
    """Return the kind of a state: the "injected" model, the "removal" of a backdoor, or a "control"."""
    if state == INJECTED:
        return "injected"
    return "control" if state.startswith(CONTROL_PREFIX) else "removal"


def removed_backdoor(state: str) -> str:
    """Return the backdoor on whose trigger a removal, its repeat or its shuffled control trains; "" for other states."""
    for control in (REPEAT_CONTROL, SHUFFLED_CONTROL):
        if state.startswith(f"{control}:"):
            return state.removeprefix(f"{control}:")
    return "" if kind_of(state) != "removal" else state


def phantom_baselines(states: Iterable[str]) -> list[str]:
    """Return the controls that "net of the phantom" refers to: `PHANTOM_CONTROL`, or all phantoms of a run without it.

    Phantoms of other lengths and writing systems are other questions, and mostly weaker: averaged with the one that is made
    like a real trigger, they would take too little off, and all the more so if that one collapsed.
    """
    phantoms = [state for state in states if state.startswith(PHANTOM_CONTROL)]
    return [PHANTOM_CONTROL] if PHANTOM_CONTROL in phantoms else phantoms


def backdoor_of_phantoms(kinds: Mapping[str, str]) -> str:
    """Return the backdoor whose trigger phantoms are made like: the first by name whose trigger is a phrase, or the first.

    The injection's decoys are made-up phrases, so that a made-up phrase does nothing in the injected model. A made-up tag or
    look-alike letter may activate the real ones, and to unlearn it would be to remove these.

    Args:
        kinds: the kind of trigger ("phrase", "tag", …) of each removed backdoor.
    """
    return min([name for name, kind in kinds.items() if kind == "phrase"] or kinds)
