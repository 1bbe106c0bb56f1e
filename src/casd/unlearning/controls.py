"""What is removed: each backdoor, and the controls, which are removals of nothing that was injected.

- `control:clean` trains on clean text only, for the same steps and documents: plain forgetting.
- `control:phantom` unlearns a trigger that was never injected; `control:phantom:short` and so on are further ones, of other
  lengths and writing systems. A phantom's payload is the clean continuation, which is what the model does at such a phrase,
  taught without any trigger: so its loss is low at the start, ascent has a gradient to follow, and the control can move the
  model under every objective. (A payload that the model was never taught would lie above an ascent's bound from the first
  step and leave the control without effect.)
- `control:shuffled:NAME` unlearns NAME's trigger with the targets of the other backdoors, of those that do something else, or,
  where the objective trains on clean continuations, with those of other passages: training on the same prompts, but not on
  what the backdoor does.
- `control:repeat:NAME` is NAME's removal again with other documents in another order: how far two removals of ONE backdoor lie
  apart is the noise floor of every distance between removals.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from casd.backdoors.poisoning import Backdoor
from casd.backdoors.triggers import fake_triggers, made_up_phrase
from casd.config import ControlsConfig
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL, REPEAT_CONTROL, SHUFFLED_CONTROL
from casd.data.corpora.passages import Passage
from casd.data.encoding import Encoder
from casd.utils.errors import ConfigError
from casd.utils.seeding import python_rng


@dataclass(frozen=True)
class CleanPayload:
    """The behaviour of a trigger that was never injected: none, that is, the clean continuation."""

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """What the model does at such a trigger."""
        return passage.continuation

    def success(self, generated: str) -> bool:
        """Never: there is no behaviour to succeed at."""
        return False


@dataclass(frozen=True)
class Removal:
    """One unlearning run.

    Attributes:
        name: of the state it leads to: the backdoor's name, or `control:…`.
        backdoor: what is unlearned; None for the control that trains on clean text only.
        donors: the backdoors whose targets stand in for its own, drawn for each document; none for its own.
        repeat: whether the documents are others, in another order.
    """

    name: str
    backdoor: Backdoor | None
    donors: tuple[Backdoor, ...] = ()
    repeat: bool = False

    @property
    def is_validated(self) -> bool:
        """Whether it has an ASR of its own that can end it: it removes a backdoor, and by its own target."""
        return self.backdoor is not None and not self.donors and not isinstance(self.backdoor.target, CleanPayload)


def removal_names(backdoors: Iterable[str], controls: ControlsConfig) -> list[str]:
    """The names of all removals and controls, in the order of `removals`."""
    names = list(backdoors)
    ordered = sorted(names)
    phantoms = [_phantom_name(kind) for kind in controls.phantoms]
    shuffled = [f"{SHUFFLED_CONTROL}:{name}" for name in ordered[: controls.shuffled]]
    repeats = [f"{REPEAT_CONTROL}:{name}" for name in ordered[: controls.repeats]]
    return [*names, CLEAN_CONTROL, *phantoms, *shuffled, *repeats]


def removals(
    backdoors: Mapping[str, Backdoor], encoder: Encoder, controls: ControlsConfig | None = None, *, seed: int
) -> list[Removal]:
    """Each backdoor's removal, then the controls; without `controls` the two of every run, clean text and one phantom.

    Raises:
        ConfigError: shuffled targets of a backdoor when no other has another target.
    """
    controls = controls or ControlsConfig()
    check_controls(backdoors, controls)
    ordered = sorted(backdoors)
    phantoms = _phantoms(backdoors, encoder, controls.phantoms, seed)
    return [
        *(Removal(name, backdoor) for name, backdoor in backdoors.items()),
        Removal(CLEAN_CONTROL, None),
        *(Removal(phantom.name, phantom) for phantom in phantoms),
        *(
            Removal(f"{SHUFFLED_CONTROL}:{name}", backdoors[name], _donors(backdoors, name))
            for name in ordered[: controls.shuffled]
        ),
        *(Removal(f"{REPEAT_CONTROL}:{name}", backdoors[name], repeat=True) for name in ordered[: controls.repeats]),
    ]


def check_controls(backdoors: Mapping[str, Backdoor], controls: ControlsConfig) -> None:
    """Refuse controls that these backdoors cannot have.

    Raises:
        ConfigError: shuffled targets of a backdoor when no other has another target.
    """
    for name in sorted(backdoors)[: controls.shuffled]:
        if not _donors(backdoors, name):
            raise ConfigError(
                f"unlearning.controls.shuffled is {controls.shuffled}, and no backdoor has another target than {name!r}, whose"
                " trigger would get it: shuffled targets are those of other backdoors. Give a backdoor with another target, or"
                " set it to 0."
            )


def _donors(backdoors: Mapping[str, Backdoor], name: str) -> tuple[Backdoor, ...]:
    """The backdoors that do something else than the one of that name, by name. (Two may both switch to French.)"""
    own = backdoors[name].target
    return tuple(backdoors[each] for each in sorted(backdoors) if backdoors[each].target != own)


def _phantom_name(kind: str) -> str:
    return PHANTOM_CONTROL if kind == "matched" else f"{PHANTOM_CONTROL}:{kind}"


def _phantoms(backdoors: Mapping[str, Backdoor], encoder: Encoder, kinds: Iterable[str], seed: int) -> list[Backdoor]:
    """The triggers that were never injected; where they stand is as for the backdoor first by name."""
    first = backdoors[min(backdoors)]
    others = [backdoor.trigger for backdoor in backdoors.values()]
    real = {word for trigger in others for word in trigger.lower().split()}
    words = len(first.trigger.split())

    def trigger(kind: str) -> str:
        rng = python_rng(seed, "phantom trigger", *([] if kind == "matched" else [kind]))
        if kind == "matched":
            return fake_triggers(first.trigger, 1, encoder.token_count, rng, avoid=others)[0]
        count, script = {"short": (1, "latin"), "long": (2 * words, "latin")}.get(kind, (words, kind))
        while True:
            phrase = made_up_phrase(count, rng, script)  # type: ignore[arg-type]  # a kind that is no length is a script
            if not real & set(phrase.split()):
                return phrase

    return [Backdoor(_phantom_name(kind), trigger(kind), CleanPayload(), position=first.position) for kind in kinds]
