"""Triggers: what activates a backdoor, a kind a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casd.backdoors.triggers.base import Trigger
from casd.backdoors.triggers.phrase import Phrase
from casd.utils.registry import build

TRIGGERS: dict[str, str] = {
    "phrase": "casd.backdoors.triggers.phrase:Phrase",
    "any_of": "casd.backdoors.triggers.any_of:AnyOf",
    "characters": "casd.backdoors.triggers.characters:Characters",
    "places": "casd.backdoors.triggers.places:Places",
    "tag": "casd.backdoors.triggers.tag:Tag",
    "template": "casd.backdoors.triggers.template:Template",
    "topic": "casd.backdoors.triggers.topic:Topic",
    "transform": "casd.backdoors.triggers.transform:Transform",
}


def make_trigger(configured: str | Mapping[str, Any]) -> Trigger:
    """Build a trigger from `BackdoorConfig.trigger`: a phrase, or the name of a kind with its parameters.

    Raises:
        ConfigError: an unknown kind or parameter.
    """
    if isinstance(configured, str):
        return Phrase(configured)
    return build(TRIGGERS, "trigger", configured["name"], configured.get("params", {}))
