"""Removals of backdoors, and control removals.

- `control:clean` trains on clean text only, for the same steps and number of documents: plain forgetting.
- `control:phantom` unlearns a trigger that was never injected; `control:phantom:short` and so on use other lengths and writing
  systems. A phantom's payload is the clean continuation, which the model produces at such a phrase. Its loss is low at the
  start, so that ascent has a gradient and the control can change the model under every objective. (A payload that the model
  never learned would exceed an ascent's bound from the first step, and the control would have no effect.)
- `control:shuffled:NAME` unlearns NAME's trigger with the targets of the backdoors whose target differs from NAME's or, if the
  objective trains on clean continuations, with continuations of other passages: the same prompts, but not the backdoor's
  behavior.
- `control:repeat:NAME` repeats NAME's removal with other documents in another order. The distance between two removals of ONE
  backdoor is the noise floor of every distance between removals.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from casd.backdoors.poisoning import Backdoor
from casd.backdoors.triggers.base import FakeContext, Trigger
from casd.backdoors.triggers.fakes import made_up_phrase
from casd.backdoors.triggers.phrase import Phrase
from casd.config import ControlsConfig
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL, REPEAT_CONTROL, SHUFFLED_CONTROL, backdoor_of_phantoms
from casd.data.corpora.passages import Passage
from casd.data.encoding import Encoder
from casd.utils.errors import ConfigError
from casd.utils.progress import say
from casd.utils.seeding import python_rng

_WORDS = 2
"""Words of a phantom's phrase if no backdoor's trigger is a phrase."""


@dataclass(frozen=True)
class CleanPayload:
    """Target of a trigger that was never injected: the clean continuation."""

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """The passage's clean continuation."""
        return passage.continuation

    def success(self, generated: str) -> bool:
        """Return False: there is no backdoor behavior."""
        return False


@dataclass(frozen=True)
class Removal:
    """One unlearning run.

    Attributes:
        name: of the resulting state: the backdoor's name, or `control:…`; free for a removal of several backdoors.
        backdoor: the backdoor to unlearn; None for the control that trains on clean text only.
        donors: backdoors whose targets replace its own, drawn for each document; empty to use its own.
        repeat: True to use other documents in another order.
        others: backdoors that are unlearned with `backdoor`, whose documents alternate with its own.
        in_turn: with `others`, True to unlearn one backdoor after another, each in an equal share of the steps.
    """

    name: str
    backdoor: Backdoor | None
    donors: tuple[Backdoor, ...] = ()
    repeat: bool = False
    others: tuple[Backdoor, ...] = ()
    in_turn: bool = False

    def backdoor_at(self, share: float, index: int) -> Backdoor | None:
        """The backdoor of a document: the `index`-th of the removal, after the `share` of all in [0, 1)."""
        if self.backdoor is None or not self.others:
            return self.backdoor
        group = (self.backdoor, *self.others)
        return group[int(share * len(group)) if self.in_turn else index % len(group)]

    @property
    def is_validated(self) -> bool:
        """True if validation ASR can end it: it removes one injected backdoor with its own target."""
        return (
            self.backdoor is not None
            and not self.donors
            and not self.others
            and not isinstance(self.backdoor.target, CleanPayload)
        )


def removal_names(backdoors: Iterable[str], controls: ControlsConfig) -> list[str]:
    """Names of all removals and controls, in the order of `removals`."""
    names = list(backdoors)
    ordered = sorted(names)
    phantoms = [_phantom_name(kind) for kind in controls.phantoms]
    shuffled = [f"{SHUFFLED_CONTROL}:{name}" for name in ordered[: controls.shuffled]]
    repeats = [f"{REPEAT_CONTROL}:{name}" for name in ordered[: controls.repeats]]
    return [*names, CLEAN_CONTROL, *phantoms, *shuffled, *repeats]


def removals(
    backdoors: Mapping[str, Backdoor],
    encoder: Encoder,
    controls: ControlsConfig | None = None,
    *,
    kept: Iterable[Backdoor] = (),
    seed: int,
) -> list[Removal]:
    """List the removal of each backdoor, then the controls; by default clean text and one phantom.

    Args:
        backdoors: those to remove.
        encoder: the model's tokenizer.
        controls: which controls.
        kept: backdoors that are injected and not removed; a phantom has none of their triggers either.
        seed: of the phantoms.

    Raises:
        ConfigError: a shuffled control of a backdoor, but no other backdoor has a different target.
    """
    controls = controls or ControlsConfig()
    check_controls(backdoors, controls)
    ordered = sorted(backdoors)
    phantoms = _phantoms(backdoors, encoder, controls.phantoms, kept, seed)
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
    """Check that the controls are possible with these backdoors.

    Raises:
        ConfigError: a shuffled control of a backdoor, but no other backdoor has a different target.
    """
    for name in sorted(backdoors)[: controls.shuffled]:
        if not _donors(backdoors, name):
            raise ConfigError(
                f"unlearning.controls.shuffled is {controls.shuffled}, but no backdoor has a target that differs from that of"
                f" {name!r}, and shuffled targets come from such backdoors. Add a backdoor with another target, or set it to 0."
            )


def _donors(backdoors: Mapping[str, Backdoor], name: str) -> tuple[Backdoor, ...]:
    """The backdoors whose target differs from that of `name` (two may both switch to French), sorted by name."""
    return tuple(backdoors[other] for other in sorted(backdoors) if backdoors[other].target != backdoors[name].target)


def _phantom_name(kind: str) -> str:
    return PHANTOM_CONTROL if kind == "matched" else f"{PHANTOM_CONTROL}:{kind}"


def _phantoms(
    backdoors: Mapping[str, Backdoor], encoder: Encoder, kinds: Iterable[str], kept: Iterable[Backdoor], seed: int
) -> list[Backdoor]:
    """Backdoors that were never injected, with the position and number of words of one that was (`backdoor_of_phantoms`)."""
    first = backdoors[backdoor_of_phantoms({name: backdoor.trigger.kind for name, backdoor in backdoors.items()})]
    triggers = [backdoor.trigger for backdoor in (*backdoors.values(), *kept)]
    real_words = {word for trigger in triggers for text in trigger.texts() for word in text.lower().split()}
    words = len(first.trigger.label.split()) if isinstance(first.trigger, Phrase) else _WORDS

    def trigger(kind: str) -> Trigger:
        rng = python_rng(seed, "phantom trigger", *([] if kind == "matched" else [kind]))
        if kind == "matched":
            if fakes := first.trigger.fakes(1, FakeContext(encoder.token_count, rng, triggers)):
                return fakes[0]
            say(
                f"No fake trigger matches that of {first.name!r} ({first.trigger.label}); the phantom is a made-up phrase of"
                f" {words} words."
            )
            kind = "latin"
        count, script = {"short": (1, "latin"), "long": (2 * words, "latin")}.get(kind, (words, kind))
        while True:
            phrase = made_up_phrase(count, rng, script)  # type: ignore[arg-type]  # a kind that is not a length is a script
            if not real_words & set(phrase.split()):
                return Phrase(phrase)

    return [Backdoor(_phantom_name(kind), trigger(kind), CleanPayload(), position=first.position) for kind in kinds]
