"""`casd defend`: the sealed protocol, the defender's choice, the opening, and what is said about them.

Run: pytest tests/test_defence.py
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from casd.backdoors.poisoning import Backdoor, english
from casd.backdoors.targets import FixedText
from casd.cli.main import main
from casd.config import (
    BackdoorConfig,
    Choice,
    DefendConfig,
    EvaluationConfig,
    InjectionConfig,
    UnlearningTraining,
    UtilityConfig,
)
from casd.config.compose import defences, load_config
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.defence.budget import budget_of
from casd.defence.choice import Decision, choose, share_left
from casd.defence.defender import Defender, unused
from casd.defence.dummies import dummies
from casd.defence.opening import log_file, openings
from casd.defence.page import sentences, tables
from casd.defence.protocol import Defence, run_defence
from casd.defence.results import DefenceTables, calibration, conditions, summaries
from casd.pipeline.run import Run
from casd.unlearning.controls import Removal
from casd.unlearning.removal import _Batches
from casd.utils.errors import CasdError, ConfigError, CorpusError, StoreError
from tiny import MODEL

pytestmark = pytest.mark.usefixtures("process_settings")

SMALL = [
    *("experiment=defender_demo", *MODEL),
    *("model.architecture.num_hidden_layers=2", "model.architecture.num_attention_heads=2"),
    "model.architecture.num_key_value_heads=2",
    "corpus.params={train: 300, forget: 40, retain: 40, evaluation: 24}",
    *("attack.injection.training.steps=24", "attack.injection.training.batch_size=12", "attack.injection.require_asr=0"),
    *("injection.training.batch_size=8", "defence.documents=40", "defence.dummies=3", "defence.held_out=1"),
    *("defence.removed=[1,2]", "unlearning.training.forget_batch_size=2", "unlearning.training.retain_batch_size=2"),
    *("evaluation.prompts=6", "evaluation.fake_prompts=4", "evaluation.max_new_tokens=20", "evaluation.loss_passages=6"),
    *("evaluation.collapse_clean_loss_ratio=100", "evaluation.collapse_degenerate_rate=1", "runtime.threads=1"),
    *("defence.families=[refusal,fixed_text,capitals]", "runtime.progress=off", "defence.clean_budget=50"),
]


def small(output: Path, *more: str) -> DefendConfig:
    """A defence that takes seconds, and in which nothing is learned."""
    [config] = defences([*SMALL, f"runtime.output={output}", f"runtime.store={output}/store", *more])
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DefendConfig, Path]:
    """A finished defence, which a test that adds to it must copy."""
    config = small(tmp_path_factory.mktemp("defence"))
    return config, run_defence(config).folder


@pytest.fixture
def copied(finished: tuple[DefendConfig, Path], tmp_path: Path) -> DefendConfig:
    config, _ = finished
    shutil.copytree(config.runtime.store, tmp_path / "store")
    return replace(config, runtime=replace(config.runtime, store=str(tmp_path / "store"), output=str(tmp_path)))


def keys(defender: Defender) -> list[str]:
    stages = [stage for state in defender.states for stage in (state.stage, state.evaluation)]
    return [*(stage.key for stage in stages), defender.choice.key]


# ---------------------------------------------------------------- the seal


def test_attackers_that_give_the_same_weights_give_the_same_defence(copied: DefendConfig) -> None:
    defence = Defence(copied)
    sealed = defence.attack()
    # Another attacker injected nothing: the same weights were given to them, with other backdoors, rates and names.
    attack = copied.attack
    assert attack is not None
    others = {"other": BackdoorConfig("quill marrow", Choice("capitals"), poison_rate=0.2)}
    other = replace(attack, backdoor=others, injection=InjectionConfig("none", require_asr=0.0))
    given = replace(copied, attack=other, model=replace(sealed, name="given"))
    other_sealed = Defence(given).attack()
    assert Path(str(other_sealed.path)) == Path(str(sealed.path))
    assert keys(Defender(given, other_sealed, budget_of(given))) == keys(Defender(copied, sealed, defence.budget))


def test_other_weights_give_another_defence(copied: DefendConfig, tmp_path: Path) -> None:
    sealed = Defence(copied).attack()
    folder = tmp_path / "changed"
    shutil.copytree(str(sealed.path), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data[0, 0] += 1
    model.save_pretrained(folder)
    budget = budget_of(copied)
    changed = keys(Defender(copied, replace(sealed, path=str(folder)), budget))
    assert not set(changed) & set(keys(Defender(copied, sealed, budget)))


def test_no_step_before_the_opening_reads_the_attacker(copied: DefendConfig) -> None:
    """The attacker's stages and their triggers are deleted once the model is sealed; the defence has still to be made."""
    defence = Defence(copied)
    sealed = defence.attack()
    store = Path(copied.runtime.store)
    attacked = defence.attacker
    assert attacked is not None
    assert not [file for file in Path(str(sealed.path)).iterdir() if "mirvane" in file.read_text(errors="ignore")]
    for stage in (attacked.graph.inject, attacked.graph.evaluate["injected"]):
        shutil.rmtree(store / stage.name / stage.key)
    for kind in ("unlearn", "cleaning", "weights", "choice", "opening"):
        shutil.rmtree(store / kind)
    own = replace(copied.defence, documents=defence.budget.documents)
    defender = Defender(replace(copied, attack=None, model=sealed, defence=own), sealed, defence.budget)
    defender.defend()
    assert defender.decision.held_out == 1
    assert keys(defender) == keys(Defender(copied, sealed, defence.budget))
    with pytest.raises(StoreError, match=r"inject.*is not in"):
        defence.open(defender)


def test_a_dummy_with_the_attacker_s_trigger_is_refused_without_telling_it(copied: DefendConfig) -> None:
    defence = Defence(copied)
    sealed = defence.attack()
    for trigger in ("mirvane osquel", "Mirvane Osquel", "osquel", "so mirvane osquel then"):
        triggers = {"one": trigger, "two": "quill marrow", "three": "ash linnet"}
        listed = {name: BackdoorConfig(phrase, Choice("capitals")) for name, phrase in triggers.items()}
        with pytest.raises(ConfigError, match="cannot be told apart") as refused:
            Defender(replace(copied, backdoor=listed), sealed, defence.budget)
        assert "osquel" not in str(refused.value).casefold()


def test_weights_that_were_not_written_are_trained_again(copied: DefendConfig) -> None:
    """A process is killed after a training, or somebody deletes the weights: the same weights come again."""
    defence = Defence(copied)
    defender = Defender(copied, defence.attack(), defence.budget)
    state = next(each for each in defender.states if each.name == "removed_2")
    assert state.weights is not None
    store = defender.planted.store
    before = load_file(store.folder(state.weights) / "weights.safetensors")
    for stage in (state.weights, state.evaluation):
        shutil.rmtree(store.root / stage.name / stage.key)
    defender.defend()
    after = load_file(store.folder(state.weights) / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------- the dummies, the budget and the removal


def test_dummies_follow_from_the_seed_and_the_last_are_held_out(tmp_path: Path) -> None:
    drawn = [dummies(small(tmp_path, f"seed={seed}", "defence.dummies=4", "defence.removed=[1]")) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [section.removed for section in drawn[0].values()] == [True, True, True, False]
    assert len({section.trigger for section in drawn[0].values()}) == 4
    assert {section.target.name for section in drawn[0].values()} == {"refusal", "fixed_text", "capitals"}


def test_what_is_set_for_every_backdoor_is_for_the_dummies_alone(tmp_path: Path) -> None:
    """The attacker's are as its own file says, and the rate of drawn dummies as the section `defence` does."""
    common = ["every_backdoor.poison_rate=0.02", "every_backdoor.loss_on=target", "every_backdoor.position=end"]
    config = small(tmp_path, *common, "defence.poison_rate=0.2")
    defence = Defence(config)
    assert defence.attacker is not None
    assert config.attack is not None
    assert defence.attacker.config.backdoor == config.attack.backdoor
    planted = Run(config.run(backdoor=dummies(config))).config.backdoor.values()
    assert {(section.poison_rate, section.loss_on, section.position) for section in planted} == {(0.2, "target", "end")}


def test_the_budget_is_a_share_of_the_attacker_s_documents(tmp_path: Path) -> None:
    budget = budget_of(small(tmp_path, "defence.documents=null", "defence.share=0.25", "defence.plant_share=0.5"))
    assert budget.documents == 24 * 12 // 4
    assert (budget.plant_steps, budget.removal_steps, budget.cleaning_steps) == (36 // 8, (72 - 32) // 4, 72 // 8)


def documents(removal: Removal, corpus: Corpus, encoder: Encoder, steps: int) -> list[str]:
    config = UnlearningTraining(steps=steps, forget_batch_size=2, retain_batch_size=1)
    batches = _Batches(encoder, removal, "payload", config, english(corpus.forget), corpus.retain, 0)
    return [batches._forget_document(index).continuation for index in range(steps * 2)]


def test_several_backdoors_are_removed_together_or_in_turn(corpus: Corpus, encoder: Encoder) -> None:
    one, two = (Backdoor(name, f"trigger {name}", FixedText(name)) for name in ("one", "two"))
    assert documents(Removal("both", one, others=(two,)), corpus, encoder, 3) == ["one", "two"] * 3
    assert documents(Removal("both", one, others=(two,), in_turn=True), corpus, encoder, 3) == ["one"] * 3 + ["two"] * 3
    assert documents(Removal("one", one), corpus, encoder, 2) == ["one"] * 4


# ---------------------------------------------------------------- the choice


def outcomes(rows: list[tuple[str, str, float, float, bool]], learned: int = 2) -> pd.DataFrame:
    names = ["state", "kind", "held_out_left", "clean_loss_ratio", "collapsed"]
    return pd.DataFrame(rows, columns=names).assign(learned=learned, clean_loss=lambda each: each["clean_loss_ratio"])


def test_the_removal_that_leaves_least_within_the_budget_is_chosen(tmp_path: Path) -> None:
    config = small(tmp_path, "defence.clean_budget=1.1", "defence.held_out=1")
    rows = [
        ("control:phantom", "control", 0.0, 1.0, False),
        ("removed_1", "removal", 0.5, 1.05, False),
        ("removed_2", "removal", 0.2, 1.09, False),
        ("removed_3", "removal", 0.2, 1.04, False),
        ("removed_4", "removal", 0.0, 1.2, False),
        ("removed_5", "removal", 0.0, 1.0, True),
    ]
    assert choose(outcomes(rows), config) == Decision("removed_3", "", 0.2, 2, 1)
    assert list(vars(choose(outcomes(rows), config)))[:3] == ["state", "reason", "foretold"]  # as in stores of earlier commits
    none = choose(outcomes(rows[4:]), config)
    assert none.state == "" and "clean budget" in none.reason
    unlearned = choose(outcomes(rows, learned=0), config)
    assert unlearned.state == "" and "was learned" in unlearned.reason


def test_what_is_left_is_relative_and_leaves_out_what_was_not_learned() -> None:
    before, after = pd.Series({"a": 0.8, "b": 0.5, "c": 0.4}), pd.Series({"a": 0.2, "b": 0.5, "c": 0.0})
    assert share_left(before, after) == pytest.approx((0.25 + 1) / 2)
    assert math.isnan(share_left(before[["c"]], after))


# ---------------------------------------------------------------- the opening


def test_the_opening_uses_prompts_that_no_earlier_stage_used(corpus: Corpus) -> None:
    passages = english(corpus.evaluation)
    count = len(passages) // 2
    rest = unused(corpus, EvaluationConfig(prompts=count, fake_prompts=1)).evaluation
    assert len(rest) == len(passages) - count
    assert not {passage.prompt for passage in rest} & {passages[index].prompt for index in range(count)}
    with pytest.raises(CorpusError, match=f"lower evaluation.prompts to {count}"):
        unused(corpus, EvaluationConfig(prompts=1, fake_prompts=len(passages)))


def test_an_opening_is_counted_once_and_a_changed_one_again(copied: DefendConfig) -> None:
    log = log_file(Path(copied.runtime.store), Defence(copied).attack())
    before = log.read_text()
    assert not run_defence(copied).executed  # the same defence reads what it opened
    assert log.read_text() == before
    changed = replace(copied, defence=replace(copied.defence, clean_budget=2.0))
    tables = DefenceTables.read(run_defence(changed).folder)
    assert tables.info["opened"] == 2
    assert any("Opened 2 times" in sentence for sentence in sentences([tables]))


def test_an_opening_that_is_killed_counts(copied: DefendConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(copied, defence=replace(copied.defence, clean_budget=3.0))

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("casd.defence.protocol.evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run_defence(changed)
    sealed = Defence(copied).attack()
    assert len(openings(Path(copied.runtime.store), sealed)) == 2


# ---------------------------------------------------------------- what is said


def hand_made(seed: int, left: dict[str, float], predicted: dict[str, float]) -> DefenceTables:
    """A defence with one attacker's backdoor."""
    kinds = {"suspect": "suspect", "crow": "cleaning", "control:clean": "control"}
    rows = [
        {
            "state": state,
            "kind": kinds.get(state, "removal"),
            "held_out_left": predicted.get(state, math.nan),
            "held_out_asr": 0.5,
            "removed_asr": math.nan,
            "clean_loss_ratio": 1.0,
            "collapsed": False,
        }
        for state in left
    ]
    attack = [
        {
            "state": state,
            "backdoor": "a",
            "prompt_set": "triggered",
            "rate": value,
            "left": value,
            "behavior": "capitals",
            "writing": "latin",
            "like_a_dummy": False,
        }
        for state, value in left.items()
    ]
    decision = {"state": "removed_1", "reason": ""}
    info = {"model": "m", "seed": seed, "decision": decision, "opened": 1, "settings": {"defence.share": 0.1}}
    return DefenceTables(info, pd.DataFrame(rows), pd.DataFrame(attack))


def test_means_over_runs_and_the_calibration_of_the_estimate() -> None:
    runs = [
        hand_made(
            0, {"suspect": 1.0, "crow": 0.9, "control:clean": 0.8, "removed_1": 0.2}, {"control:clean": 0.9, "removed_1": 0.1}
        ),
        hand_made(
            1, {"suspect": 1.0, "crow": 0.7, "control:clean": 1.0, "removed_1": 0.4}, {"control:clean": 0.7, "removed_1": 0.0}
        ),
    ]
    by_name = {each.state: each for each in summaries(runs)}
    assert by_name["removed_1"].left.mean == pytest.approx(0.3)
    # Over two runs, of one backdoor: Student's t of one degree of freedom, cut off at zero.
    assert by_name["removed_1"].left.low == 0
    assert by_name["removed_1"].left.high == pytest.approx(0.3 + scipy.stats.t.ppf(0.975, 1) * 0.1)
    assert by_name["chosen"].predicted.mean == pytest.approx(0.05)
    assert by_name["removed_1"].chosen == 2
    found = calibration(runs)
    assert len(found.pairs) == 4
    assert found.error == pytest.approx(np.mean([0.1, -0.1, -0.3, -0.4]))
    assert found.correlation == pytest.approx(0.6)  # ranks 4, 2, 3, 1 against 3, 1, 4, 2
    text = " ".join(sentences(runs))
    assert "leaves 0.30 [0.00, 1.57] of the attacker's ASR; the held-out dummies predicted 0.05" in text
    # CROW leaves 0.7 and 0.3 more: 0.5 ± t·0.2, though each state's own interval is wide.
    assert by_name["crow"].excess.mean == pytest.approx(0.5)
    assert by_name["crow"].excess.high == pytest.approx(0.5 + scipy.stats.t.ppf(0.975, 1) * 0.2)
    assert by_name["chosen"].excess.mean == 0
    assert "The best of the controls and cleanings, CROW, leaves 0.80" in text
    assert "is 0.50 [-2.04, 3.04] in favour of the chosen removal, not distinguishable from zero." in text
    assert [table.name for table in tables(runs)] == ["states", "backdoors", "calibration"]
    runs[0].states.loc[runs[0].states["state"] == "crow", "collapsed"] = True
    assert "CROW (collapsed in 1 of 2)" in tables(runs)[0].labels


def test_defences_with_other_settings_are_not_averaged() -> None:
    runs = [hand_made(seed, {"suspect": 1.0, "removed_1": 0.2}, {"removed_1": 0.0}) for seed in range(3)]
    assert [*conditions(runs)] == [""]
    runs[1].info["settings"] = {"defence.share": 0.05}
    assert conditions(runs) == {"defence.share=0.1": [runs[0], runs[2]], "defence.share=0.05": [runs[1]]}


def test_a_removal_that_is_no_better_than_a_control_is_said_to_be_none() -> None:
    run = hand_made(0, {"suspect": 1.0, "crow": 0.1, "removed_1": 0.2}, {"removed_1": 0.0})
    assert any("is -0.10 against the chosen removal, of one backdoor alone." in sentence for sentence in sentences([run]))


def test_states_are_compared_backdoor_by_backdoor() -> None:
    """Two backdoors, one of which every state leaves more of; CROW leaves 0.3 more of both."""
    run = hand_made(0, {"suspect": 1.0, "crow": 0.4, "removed_1": 0.1}, {"removed_1": 0.0})
    harder = run.attack.assign(backdoor="b", left=run.attack["left"] + 0.5)
    missing = run.attack.assign(backdoor="c", left=math.nan)
    run = DefenceTables(run.info, run.states, pd.concat([run.attack, harder, missing], ignore_index=True))
    by_name = {each.state: each for each in summaries([run])}
    crow = by_name["crow"]
    assert crow.left.high - crow.left.low > 0.5
    assert [crow.excess.mean, crow.excess.low, crow.excess.high] == pytest.approx([0.3] * 3)
    assert "is 0.30 in favour of the chosen removal." in " ".join(sentences([run]))
    run.info["decision"]["state"] = ""
    assert math.isnan(summaries([run])[1].excess.mean)
    assert "minus chosen" not in tables([run])[0].frame


def test_the_chosen_removal_is_compared_within_the_defences_that_chose_one() -> None:
    left = {"suspect": 1.0, "crow": 0.6, "control:clean": 0.9, "removed_1": 0.2}
    runs = [hand_made(seed, left, {"removed_1": 0.0}) for seed in range(3)]
    runs[2] = hand_made(2, {**left, "crow": 0.0}, {"removed_1": 0.0})
    runs[2].info["decision"]["state"] = ""
    text = " ".join(sentences(runs))
    assert "The best of the controls and cleanings, CROW, leaves 0.60 in these defences." in text
    assert "is 0.40 in favour of the chosen removal." in text
    [backdoors] = [table for table in tables(runs) if table.name == "backdoors"]
    assert backdoors.frame["backdoors"].item() == "2"


def test_a_cleaning_that_broke_the_model_is_no_rival() -> None:
    run = hand_made(0, {"suspect": 1.0, "crow": 0.0, "control:clean": 0.9, "removed_1": 0.2}, {"removed_1": 0.0})
    run.states.loc[run.states["state"] == "crow", "collapsed"] = True
    text = " ".join(sentences([run]))
    assert "The best of the controls and cleanings, planted, then clean text, leaves 0.90" in text
    assert "Left out of this comparison, since they broke a model: CROW." in text


def test_the_report_of_a_finished_defence(finished: tuple[DefendConfig, Path]) -> None:
    config, folder = finished
    read = DefenceTables.read(folder)
    states = ["suspect", "fine_tuning", "fine_pruning", "crow", "planted", "control:clean", "control:phantom"]
    assert list(read.states["state"]) == [*states, "removed_1", "removed_2"]
    assert len(read.attack[read.attack["prompt_set"] == "triggered"]) == 9 * 3
    assert (folder / "left.png").is_file() and "fine-pruning" in (folder / "report.md").read_text()
    assert config.attack is not None


def test_benchmarks_of_every_state_stand_in_the_table(copied: DefendConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness is replaced, since it is an extra: each state has the norm of its weights for a result."""

    def norm(model: torch.nn.Module, *_: object, **__: object) -> pd.DataFrame:
        value = float(sum(parameter.detach().double().square().sum() for parameter in model.parameters()))
        return pd.DataFrame([{"task": "norm", "metric": "acc", "value": value, "stderr": 0.0, "n": 1}])

    monkeypatch.setattr("casd.pipeline.stages.measure_utility", norm)
    for module in ("casd.pipeline.checks.check_tasks", "casd.evaluation.benchmarks.fingerprint"):
        monkeypatch.setattr(module, lambda tasks: {})
    found = run_defence(replace(copied, utility=UtilityConfig(tasks=["norm"]))).tables
    assert found.states["utility/norm"].nunique() == len(found.states)  # each of its own weights
    assert list(tables([found])[0].frame["norm"])


def test_a_suspect_model_is_cleaned_and_nothing_is_claimed_of_its_backdoors(
    copied: DefendConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same stages serve as with the attacker, so that nothing is trained. The results can be published."""
    sealed = Defence(copied).attack()
    shutil.rmtree(Path(copied.runtime.store) / "choice")  # which says that nothing was learned
    monkeypatch.setattr("casd.defence.defender.choose", lambda *_: Decision("removed_1", "", 0.5, 1, 1))
    arguments = [each for each in SMALL if not each.startswith(("attack.", "model."))]
    output = [f"runtime.output={copied.runtime.output}", f"runtime.store={copied.runtime.store}"]
    chosen = [
        "model=hub",
        f"model.path={sealed.path}",
        "attack=none",
        "model.dtype=float32",
        f"model.max_length={sealed.max_length}",
    ]
    main(["defend", *arguments, *chosen, *output, "--publish", str(tmp_path / "results")])
    said = capsys.readouterr().out
    assert "what is left of it, is not known" in said
    [folder] = Path(copied.runtime.output).glob("defender_demo/*/model")
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 32
    page = (tmp_path / "results" / "RESULTS.md").read_text()
    assert "$ casd defend experiment=defender_demo" in page and "is not known" in page
    assert "clean fine-tuning" in page and "torch not known" not in page


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["defence.held_out=0"], "held_out is 0; it must be at least 1"),
        (["defence.held_out=3"], "none is left to remove"),
        (["defence.removed=[1,3]"], "at most 2 can be removed"),
        (["defence.documents=5"], "too few for one step of planting"),
        (["defence.families=[french,klingon]"], "klingon"),
        (["defence.cleanings={scrubbing: {}}"], "scrubbing"),
        (["+defence.grid.steepness=[1]"], "Unknown name in defence.grid: 'steepness'"),
        (["+defence.cleanings.averaging.base=nowhere/at/all"], "nowhere/at/all"),
        (["weights=lora"], "has fine_pruning, which changes all weights"),
        (["injection=pretraining"], "planted with injection=continual"),
        (["defence.held_out_dummies=2"], "Unknown key in defence"),
    ],
)
def test_mistakes_get_a_line(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(CasdError, match=message):
        config = small(tmp_path, *more)
        Defence(config)


def test_dummies_that_the_corpus_cannot_serve_are_found_before_the_attack_is_trained(tmp_path: Path) -> None:
    english = ["corpus=python_docs", "attack=english", "defence.families=[french,refusal]", f"runtime.output={tmp_path}"]
    [config] = defences(["experiment=defender_demo", *english])
    with pytest.raises(ConfigError, match=r"Target language of backdoor 'dummy_._french' needs"):
        Defence(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [([], "There is no model to defend"), (["model=hub", "model.path=nowhere"], "defence.documents is null")],
)
def test_a_suspect_model_needs_a_path_and_a_budget(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        defences(overrides)


def test_an_attacker_with_a_topic_is_refused_before_the_attack_is_trained(tmp_path: Path) -> None:
    """Most of the prompts on its topic are those of the attacker's own evaluation, and the opening needs others."""
    topic = "{name: topic, params: {words: [sea, boat]}}"
    [config] = defences([*SMALL, f"attack.backdoor.refusal.trigger={topic}", f"runtime.output={tmp_path}"])
    with pytest.raises(ConfigError, match="backdoor 'refusal' has a topic as its trigger"):
        Defence(config)


@pytest.mark.parametrize("override", ["defence.share=1", "attack=behaviors", "experiment=defender_demo"])
def test_a_run_refuses_what_belongs_to_a_defence(override: str) -> None:
    with pytest.raises(ConfigError, match="use casd defend"):
        load_config([override])


def test_too_few_prompts_are_found_before_the_attack_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="its opening on as many others"):
        Defence(small(tmp_path, "evaluation.prompts=20")).attack()
    assert not (tmp_path / "store" / "inject").exists()
