"""The defender's dummies: backdoors with triggers and behaviors drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from casd.backdoors.triggers.fakes import made_up_phrase
from casd.config import BackdoorConfig, Choice, DefendConfig
from casd.config.defence import FAMILIES
from casd.utils.seeding import python_rng

WORDS = 2
"""Words of a drawn trigger."""


def dummies(config: DefendConfig) -> dict[str, BackdoorConfig]:
    """Return the dummies, first those that can be removed, then those that are held out (`removed` is False).

    They are those of the section `backdoor` or, if it is empty, drawn: each family of behaviors once, in an order that the
    seed gives, then again, with triggers of made-up words. Drawn ones have the poison rate of `defence`, and what
    `every_backdoor` sets besides. The last ones are held out.
    """
    listed = dict(config.backdoor) or _drawn(config)
    last = list(listed)[len(listed) - config.defence.held_out :]
    return {name: replace(section, removed=name not in last) for name, section in listed.items()}


def _drawn(config: DefendConfig) -> Mapping[str, BackdoorConfig]:
    defence = config.defence
    rng = python_rng(config.seed, "dummies")
    families = rng.sample(defence.families, len(defence.families))
    common = config.every_backdoor.chosen | {"poison_rate": defence.poison_rate}
    drawn: dict[str, BackdoorConfig] = {}
    used: set[str] = set()
    for number in range(1, defence.dummies + 1):
        family = families[(number - 1) % len(families)]
        target, params = FAMILIES[family]
        trigger = made_up_phrase(WORDS, rng)
        while used & set(trigger.split()):
            trigger = made_up_phrase(WORDS, rng)
        used |= set(trigger.split())
        drawn[f"dummy_{number}_{family}"] = BackdoorConfig(trigger=trigger, target=Choice(target, dict(params)), **common)
    return drawn
