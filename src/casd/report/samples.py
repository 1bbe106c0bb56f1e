"""Samples of generated text for each backdoor: before its removal, after it, and in the other model states.

All of it is untrusted text, and is only passed on as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import pandas as pd

from casd.analysis.results import RunTables
from casd.config.states import INJECTED

SHOWN: Final = {"triggered": 2, "fake": 1}
"""Prompts of each kind that are shown for each backdoor: the first ones, without selection."""
_CLEAN: Final = "clean"
"""The kind of prompt that belongs to no backdoor."""


@dataclass(frozen=True)
class Generation:
    """A text generated in one model state, and whether it shows the backdoor's behavior; None where that was not tested."""

    state: str
    text: str
    success: bool | None
    collapsed: bool


@dataclass(frozen=True)
class Sample:
    """A prompt and its continuations.

    Attributes:
        prompt_set: the kind of prompt.
        prompt: its text in pieces, each with whether it is the trigger.
        pair: before and after the backdoor's own removal.
        others: after all the others, for the first prompt of a backdoor; else empty.
    """

    prompt_set: str
    prompt: list[tuple[str, bool]]
    pair: list[Generation]
    others: list[Generation]


def samples_of(tables: RunTables, triggers: Mapping[str, str]) -> dict[str, list[Sample]]:
    """The samples of each backdoor, then that of a clean prompt under an empty name; a backdoor without any is left out.

    Args:
        tables: the run.
        triggers: the phrase of each backdoor, to be marked in its prompts; backdoors without one get no mark.
    """
    found: dict[str, list[Sample]] = {}
    for backdoor in tables.backdoors:
        mine = tables.samples[tables.samples["backdoor"] == backdoor]
        prompts = [
            (prompt_set, prompt)
            for prompt_set, count in SHOWN.items()
            for prompt in mine.loc[mine["prompt_set"] == prompt_set, "prompt"].drop_duplicates().head(count)
        ]
        for place, (prompt_set, prompt) in enumerate(prompts):
            rows = mine[(mine["prompt_set"] == prompt_set) & (mine["prompt"] == prompt)]
            written = _generations(rows, tables)
            pair = [written.pop(state) for state in (INJECTED, backdoor) if state in written]
            others = list(written.values()) if place == 0 else []
            found.setdefault(backdoor, []).append(Sample(prompt_set, _pieces(prompt, triggers.get(backdoor)), pair, others))
    clean = tables.samples[tables.samples["prompt_set"] == _CLEAN]
    if len(clean):
        prompt = clean["prompt"].iloc[0]
        # The test for a behavior belongs to a backdoor, and these texts belong to none.
        asked = _generations(clean[clean["prompt"] == prompt], tables).values()
        unjudged = [replace(each, success=None) for each in asked]
        pair = [each for each in unjudged if each.state == INJECTED]
        others = [each for each in unjudged if each.state != INJECTED]
        found[""] = [Sample(_CLEAN, _pieces(prompt, None), pair, others)]
    return found


def _generations(rows: pd.DataFrame, tables: RunTables) -> dict[str, Generation]:
    """The text of each state, in the order of the states."""
    order = {state: place for place, state in enumerate(tables.states["state"])}
    ordered = rows.sort_values("state", key=lambda column: column.map(order), kind="stable").drop_duplicates("state")
    return {
        record["state"]: Generation(
            record["state"], str(record["generated"]), bool(record["success"]), record["state"] in tables.collapsed
        )
        for record in ordered.to_dict("records")
    }


def _pieces(prompt: str, trigger: str | None) -> list[tuple[str, bool]]:
    before, found, after = str(prompt).partition(trigger) if trigger else (str(prompt), "", "")
    return [piece for piece in ((before, False), (found, True), (after, False)) if piece[0]]
