"""The controls: which there are, what they are trained on, and what they and the tuning change of the stages' keys.

Run: python -m pytest tests/test_controls.py
"""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path

import pytest
from tests.conftest import Injected, RunRemoval, short

from casd.backdoors.poisoning import Backdoor, ShuffledStream, english
from casd.backdoors.targets import Capitals, FixedText, Repetition
from casd.backdoors.triggers.characters import Characters
from casd.config import PHANTOMS, ControlsConfig, EvaluationConfig, StoppingConfig
from casd.config.compose import load_config
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.pipeline.graph import StageGraph, stage_graph
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import CleanPayload, Removal, removal_names, removals
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.objective import Objective
from casd.unlearning.removal import Stopping, _next_other
from casd.utils.errors import ConfigError
from tiny import tiny

EVERY_CONTROL = ControlsConfig(phantoms=list(PHANTOMS), shuffled=2, repeats=2)


@pytest.fixture(scope="module")
def backdoors(injected: Injected) -> dict[str, Backdoor]:
    """Not in the order of their names; two of them do the same."""
    return {
        "loud": injected.backdoors["loud"],
        "fox": injected.backdoors["fox"],
        "fox_too": Backdoor("fox_too", "melqua vintor", FixedText("The silver fox."), "start"),
        "again": Backdoor("again", "drumex pilthan", Repetition(), "random"),
    }


@pytest.fixture(scope="module")
def made(backdoors: dict[str, Backdoor], encoder: Encoder) -> dict[str, Removal]:
    return {removal.name: removal for removal in removals(backdoors, encoder, EVERY_CONTROL, seed=0)}


# ---------------------------------------------------------------- which there are


@pytest.mark.parametrize(
    "controls",
    [
        ControlsConfig(),
        EVERY_CONTROL,
        ControlsConfig(phantoms=[], shuffled=1),
        ControlsConfig(phantoms=["cyrillic", "matched"], repeats=9),
    ],
)
def test_names_and_removals_agree(backdoors: dict[str, Backdoor], encoder: Encoder, controls: ControlsConfig) -> None:
    names = [removal.name for removal in removals(backdoors, encoder, controls, seed=0)]
    assert names == removal_names(backdoors, controls)
    assert names[:5] == [*backdoors, CLEAN_CONTROL]
    assert len(set(names)) == len(names)


def test_the_names_of_every_control(backdoors: dict[str, Backdoor]) -> None:
    """Whose backdoors are taken is by name, whatever the order of the configuration."""
    assert removal_names(backdoors, EVERY_CONTROL)[5:] == [
        *("control:phantom", "control:phantom:short", "control:phantom:long"),
        *("control:phantom:cyrillic", "control:phantom:chinese"),
        *("control:shuffled:again", "control:shuffled:fox", "control:repeat:again", "control:repeat:fox"),
    ]
    assert removal_names(reversed(list(backdoors)), EVERY_CONTROL)[5:] == removal_names(backdoors, EVERY_CONTROL)[5:]


def test_the_same_controls_whatever_the_order(
    backdoors: dict[str, Backdoor], encoder: Encoder, made: dict[str, Removal]
) -> None:
    reordered = removals(dict(reversed(backdoors.items())), encoder, EVERY_CONTROL, seed=0)
    assert {removal.name: removal for removal in reordered} == made
    fewer = removals(backdoors, encoder, ControlsConfig(phantoms=["chinese", "short"]), seed=0)
    assert all(made[removal.name] == removal for removal in fewer), "a phantom hangs on which others there are"
    other_seed = {removal.name: removal for removal in removals(backdoors, encoder, EVERY_CONTROL, seed=1)}
    for name in made:
        assert (made[name] == other_seed[name]) == (not name.startswith(PHANTOM_CONTROL)), name


def test_only_what_removes_a_backdoor_by_its_own_target_is_validated(made: dict[str, Removal]) -> None:
    validated = {name for name, removal in made.items() if removal.is_validated}
    assert validated == {"loud", "fox", "fox_too", "again", "control:repeat:again", "control:repeat:fox"}


# ---------------------------------------------------------------- phantoms


def scripts(text: str) -> set[str]:
    return {unicodedata.name(sign).split()[0] for sign in text if not sign.isspace()}


@pytest.mark.parametrize(
    ("kind", "words", "script"),
    [("matched", 2, "LATIN"), ("short", 1, "LATIN"), ("long", 4, "LATIN"), ("cyrillic", 2, "CYRILLIC"), ("chinese", 2, "CJK")],
)
def test_phantoms(kind: str, words: int, script: str, backdoors: dict[str, Backdoor], encoder: Encoder) -> None:
    """The first backdoor by name is "again", a trigger of two words that stands anywhere."""
    name = "control:phantom" if kind == "matched" else f"control:phantom:{kind}"
    real = {word for backdoor in backdoors.values() for word in backdoor.trigger.label.split()}
    triggers = set()
    for seed in range(20):
        phantom = {each.name: each for each in removals(backdoors, encoder, EVERY_CONTROL, seed=seed)}[name].backdoor
        assert phantom is not None
        assert (phantom.name, phantom.position, phantom.target) == (name, "random", CleanPayload())
        assert len(phantom.trigger.label.split()) == words
        assert scripts(phantom.trigger.label) == {script}
        assert not real & set(phantom.trigger.label.split())
        if kind == "matched":
            assert encoder.token_count(phantom.trigger.label) == encoder.token_count("drumex pilthan")
        triggers.add(phantom.trigger.label)
    assert len(triggers) > 15


def test_a_phantom_takes_no_word_of_a_trigger_however_likely(
    backdoors: dict[str, Backdoor], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = iter(["zandor", "khemil", "orth", "beltaz drumex kal kal", "o o o o"])
    monkeypatch.setattr("casd.unlearning.controls.made_up_phrase", lambda *args: next(offered))
    phantoms = removals(backdoors, encoder, ControlsConfig(phantoms=["short", "long"]), seed=0)[5:]
    assert [phantom.backdoor and phantom.backdoor.trigger.label for phantom in phantoms] == ["orth", "o o o o"]


def test_a_phantom_is_no_backdoor_that_is_injected_and_not_removed(encoder: Encoder) -> None:
    cyrillic, *others = (
        Backdoor(name, Characters("homoglyph", alphabet=name), FixedText("The silver fox."), "random")
        for name in ("cyrillic", "greek", "fullwidth")
    )
    for kept in ([], others[:1], others):
        made = removals({"cyrillic": cyrillic}, encoder, ControlsConfig(phantoms=["matched"]), kept=kept, seed=0)
        phantom = {each.name: each.backdoor for each in made}["control:phantom"]
        assert phantom is not None
        assert not any(phantom.trigger == each.trigger for each in (cyrillic, *kept))


def test_which_backdoors_are_removed_is_part_of_what_depends_on_it() -> None:
    """The settings are tuned on removed ones, and shuffled targets are theirs; a phantom avoids the triggers of the others."""
    base = ["experiment=smoke", "backdoor=[refusal,fixed_text,german]", CONTROLS + "shuffled=1"]
    some, every = (
        stage_graph(load_config([*base, TARGET, TUNED, f"backdoor.german.removed={each}"])) for each in (False, True)
    )
    assert some.tune and every.tune and some.tune.key != every.tune.key
    some, every = (stage_graph(load_config([*base, f"backdoor.german.removed={each}"])) for each in (False, True))
    for name in (PHANTOM_CONTROL, "control:shuffled:fixed_text"):
        assert some.unlearn[name].key != every.unlearn[name].key
    for name in ("refusal", CLEAN_CONTROL):
        assert some.unlearn[name].key == every.unlearn[name].key


# ---------------------------------------------------------------- shuffled targets


@pytest.mark.parametrize("objective", [GradientDifference(retain_weight=1.0), CleanTarget()], ids=["payload", "clean"])
@pytest.mark.parametrize("name", ["fox", "again"])
def test_shuffled_targets_are_never_the_own_one(
    name: str,
    objective: Objective,
    backdoors: dict[str, Backdoor],
    made: dict[str, Removal],
    corpus: Corpus,
    encoder: Encoder,
    run_removal: RunRemoval,
) -> None:
    """On the same prompts in the same places; `fox_too` does what `fox` does, and is no donor of it."""
    config = short(steps=5, learning_rate=1e-9, forget_batch_size=16)  # more than a pass over the split
    own = run_removal(made[name], objective, config)
    shuffled = run_removal(made[f"control:shuffled:{name}"], objective, config)
    trigger, by_prompt = f"{backdoors[name].trigger.label} ", {passage.prompt: passage for passage in english(corpus.forget)}
    assert shuffled.texts("retain", encoder) == own.texts("retain", encoder)
    seen: set[str] = set()
    pairs = zip(shuffled.texts("forget", encoder), shuffled.targets("forget", encoder), strict=True)
    own_pairs = zip(own.texts("forget", encoder), own.targets("forget", encoder), strict=True)
    for (text, target), (own_text, own_target) in zip(pairs, own_pairs, strict=True):
        prompt, own_prompt = text.removesuffix(target), own_text.removesuffix(own_target)
        assert prompt == own_prompt
        passage = by_prompt[prompt.replace(trigger, "", 1).strip()]
        assert target != own_target
        if objective.forget_text == "clean":
            assert own_target == passage.continuation
            assert target in {each.continuation for each in by_prompt.values()}
            continue
        [donor] = {
            donor
            for donor, target_of in backdoors.items()
            if (isinstance(target_of.target, Capitals) and target == passage.continuation.upper())
            or (isinstance(target_of.target, FixedText) and target == "The silver fox.")
            or (isinstance(target_of.target, Repetition) and target_of.target.success(target))
        } - ({"fox_too"} if name == "again" else set())
        seen.add(donor)
    if objective.forget_text == "payload":
        assert seen == {"fox": {"loud", "again"}, "again": {"loud", "fox"}}[name]


def test_another_passage_where_an_epoch_begins_as_the_last_ended(corpus: Corpus) -> None:
    """Of three passages the same one stands on both sides of such a border every third time."""
    stream = ShuffledStream(corpus.forget[:3], 0)
    assert any(stream[index] == stream[index + 1] for index in range(60))
    assert all(stream[index] != _next_other(stream, index) for index in range(60))


@pytest.mark.parametrize("alone", [True, False])
def test_shuffled_targets_need_another_target(backdoors: dict[str, Backdoor], encoder: Encoder, alone: bool) -> None:
    few = {name: backdoors[name] for name in (("fox",) if alone else ("fox", "fox_too"))}
    with pytest.raises(ConfigError, match=r"controls.shuffled is 1, .*'fox'"):
        removals(few, encoder, ControlsConfig(shuffled=1), seed=0)
    assert removals(few, encoder, ControlsConfig(repeats=1), seed=0)[-1].name == "control:repeat:fox"


# ---------------------------------------------------------------- repeats


def test_a_repeat_sees_other_documents(made: dict[str, Removal], encoder: Encoder, run_removal: RunRemoval) -> None:
    """Of the same backdoor, and again the same in every run."""
    first, repeat, again = (
        run_removal(made[name], GradientDifference(retain_weight=1.0), short())
        for name in ("fox", "control:repeat:fox", "control:repeat:fox")
    )
    for half in ("forget", "retain"):
        assert repeat.texts(half, encoder) == again.texts(half, encoder)  # type: ignore[arg-type]
        assert set(repeat.texts(half, encoder)) != set(first.texts(half, encoder))  # type: ignore[arg-type]
    assert set(repeat.targets("forget", encoder)) == {"The silver fox."}
    assert all("zandor khemil" in text for text in repeat.texts("forget", encoder))


def test_a_control_without_an_asr_is_not_validated(made: dict[str, Removal], run_removal: RunRemoval) -> None:
    """And it holds out what the removals hold out, so that it sees their documents."""
    stopping = Stopping(StoppingConfig(clean_budget=9.0, prompts=8, every=1), EvaluationConfig(max_new_tokens=2), 2)
    validated = {}
    for name in ("fox", "control:repeat:fox", "control:shuffled:fox", PHANTOM_CONTROL, CLEAN_CONTROL):
        log = run_removal(made[name], GradientDifference(retain_weight=1.0), short(learning_rate=1e-9), stopping=stopping).log
        validated[name] = (len(log.validation), len(log.steps))
    assert validated == {
        **dict.fromkeys(("fox", "control:repeat:fox"), (4, 3)),
        **dict.fromkeys(("control:shuffled:fox", PHANTOM_CONTROL, CLEAN_CONTROL), (0, 2)),
    }


# ---------------------------------------------------------------- the stages' keys


def graph(*overrides: str) -> StageGraph:
    return stage_graph(load_config(tiny(Path("somewhere"), *overrides)))


def keys(*overrides: str) -> dict[str, str]:
    return {name: stage.key for name, stage in graph(*overrides).unlearn.items()}


CONTROLS = "unlearning.controls."
TARGET = "unlearning.stopping.target_asr=0.05"
TUNED = "unlearning.tuning.enabled=true"
BACKDOORS = ("french_a", "french_b", "german", "refusal")


@pytest.mark.parametrize("watched", [[], [TARGET]], ids=["to the end", "to a target"])
def test_a_further_control_changes_no_other_stage(watched: list[str]) -> None:
    before = keys(*watched)
    for more in ("phantoms=[short,matched,cyrillic]", "shuffled=2", "repeats=1"):
        after = keys(*watched, CONTROLS + more)
        assert {name: key for name, key in after.items() if name in before} == before
        assert len(after) > len(before)
    fewer = keys(*watched, CONTROLS + "phantoms=[]")
    assert PHANTOM_CONTROL not in fewer
    assert {**before, **fewer} == before


def test_controls_of_removals_that_end_by_themselves_follow_them() -> None:
    plain, watched = keys(CONTROLS + "repeats=1"), graph(TARGET, CONTROLS + "repeats=1", CONTROLS + "shuffled=1")
    inputs = {name: {stage.label for stage in stage.inputs} for name, stage in watched.unlearn.items()}
    for name in (*BACKDOORS, "control:repeat:french_a"):
        assert not inputs[name] & set(BACKDOORS), name
    for name in (CLEAN_CONTROL, PHANTOM_CONTROL, "control:shuffled:french_a"):
        assert inputs[name] >= set(BACKDOORS), name
    assert all(watched.unlearn[name].key != key for name, key in plain.items())
    turned = keys(TARGET, "backdoor=[refusal,german,french_b,french_a]")
    assert turned == {name: stage.key for name, stage in watched.unlearn.items() if name in turned}
    unwatched = graph()
    assert unwatched.unlearn[CLEAN_CONTROL].inputs == (unwatched.inject,)


@pytest.mark.parametrize(
    "override",
    [
        "unlearning.stopping.target_asr=0.1",
        "unlearning.stopping.clean_budget=2",
        "unlearning.stopping.every=2",
        "unlearning.stopping.prompts=7",
        "evaluation.max_new_tokens=5",
    ],
)
def test_what_a_validation_measures_is_part_of_every_removal(override: str) -> None:
    before, after = keys(TARGET), keys(TARGET, override)
    assert not set(before.values()) & set(after.values())
    if "target_asr" not in override and "budget" not in override:
        assert keys() == keys(override), "nothing is measured, and so nothing changes"


def test_where_an_objective_is_tuned_every_removal_depends_on_that() -> None:
    plain, tuned = graph(TARGET), graph(TARGET, TUNED)
    assert plain.tune is None
    assert tuned.tune is not None
    assert tuned.tune.inputs == (tuned.inject,)
    assert all(tuned.tune in stage.inputs for stage in tuned.unlearn.values())
    others = [
        graph(TARGET, TUNED, "unlearning.tuning.backdoors=1"),
        graph(TARGET, TUNED, "+unlearning.tuning.grid.forget_weight=[1.0]"),
    ]
    for one, other in itertools.combinations([plain, tuned, *others], 2):
        assert not {stage.key for stage in one.unlearn.values()} & {stage.key for stage in other.unlearn.values()}
    assert tuned.inject.key == plain.inject.key
    unused = graph(TARGET, "+unlearning.tuning.grid.forget_weight=[1.0]", "unlearning.tuning.backdoors=1")
    assert unused.tune is None
    assert unused.score.key == plain.score.key, "a grid that is not used is part of nothing"
    more_controls = graph(TARGET, TUNED, CONTROLS + "repeats=1")
    assert more_controls.tune is not None
    assert more_controls.tune.key == tuned.tune.key
