"""Whether removed backdoors stay removed: rounded weights, relearning, the clean model, what is not reached, and mistakes.

Run: pytest tests/test_persistence.py
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import Injected, MakeModel, RunRemoval, short
from tests.synthetic import run_of

from architectures import tiny_model
from casd.analysis.conditions import condition_key
from casd.analysis.inclusion import TARGET_NOT_REACHED
from casd.analysis.persistence import OTHERS, persistence_summary, returns, trace
from casd.analysis.results import RunTables
from casd.analysis.tables import PERSISTENCE
from casd.backdoors.poisoning import PoisonedStream
from casd.backdoors.prompts import make_prompt_sets
from casd.config import EvaluationConfig, TrainingConfig, UnlearningTraining
from casd.config.compose import load_config, load_defence, to_yaml
from casd.config.persistence import PersistenceConfig
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.evaluation.asr import evaluate
from casd.evaluation.generation import generate
from casd.models.quantization import quantize, quantized
from casd.models.weights import copy_weights, restore_weights
from casd.pipeline.graph import StageGraph, stage_graph
from casd.pipeline.persistence import make_persistence
from casd.pipeline.run import Run, checked_graph
from casd.pipeline.units import units_of
from casd.planning.plan import plans
from casd.report import print_run
from casd.report.persistence import persistence_curves, persistence_statements, persistence_table
from casd.training.checkpoints import TrainingLog
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import Removal
from casd.unlearning.persistence import Persistence, Treatment, relearned_documents, treatments
from casd.unlearning.removal import unlearn
from casd.utils.errors import CasdError, CorpusError, ModelError
from casd.utils.runtime import Runtime
from tiny import SMALLER, tiny

pytestmark = pytest.mark.usefixtures("process_settings", "no_rendering")
ON = [
    *("persistence=default", "persistence.states=[french_a,control:clean]", "persistence.relearn_documents=[1,2]"),
    *("persistence.steps=3", "persistence.clean_steps=2", "persistence.batch_size=2", "persistence.prompts=4"),
]


# ---------------------------------------------------------------- rounded weights


def test_rounding_to_three_bits_by_hand() -> None:
    weight = torch.tensor([[1.0, -0.6, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0], [-30.0, 14.0, 4.0, 6.0]])
    expected = torch.tensor([[1.0, -2 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0, 0.0], [-30.0, 10.0, 0.0, 10.0]])
    torch.testing.assert_close(quantized(weight, 3), expected)
    torch.testing.assert_close(quantized(weight.T.contiguous(), 3, channel_dim=1), expected.T)


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_against_torch_and_within_half_a_step(bits: int) -> None:
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(bits))
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1) / largest
    zero = torch.zeros(16, dtype=torch.int32)
    made = quantized(weight, bits)
    torch.testing.assert_close(made, torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest))
    assert ((made - weight).abs() <= scale[:, None] / 2 * (1 + 1e-5)).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in made)
    torch.testing.assert_close(quantized(made, bits), made)
    assert quantized(weight.bfloat16(), bits).dtype == torch.bfloat16


def test_linear_layers_alone_are_rounded(make_model: MakeModel) -> None:
    model = make_model(spread=0.3)
    before = copy_weights(model)
    assert quantize(model, 4) == 14  # of two blocks: four of attention, three of the MLP
    changed = {name for name, value in copy_weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(dict(model.named_parameters())[name].detach(), quantized(before[name], 4))


def test_experts_are_no_linear_layers_and_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Experts \(.*experts\..*\) cannot be rounded to 4 bits"):
        quantize(tiny_model("mixtral"), 4)


# ---------------------------------------------------------------- treatments


@pytest.fixture(scope="module")
def bench(injected: Injected, corpus: Corpus, encoder: Encoder) -> Persistence:
    """A model from which the backdoor "fox" was removed, and which still has "loud"."""
    model, evaluation = injected.model(), EvaluationConfig(prompts=8, fake_triggers=0, max_new_tokens=16, loss_passages=8)
    runtime = Runtime("cpu")
    training = UnlearningTraining(steps=12, learning_rate=1e-3, forget_batch_size=2, retain_batch_size=4)
    removal = Removal("fox", injected.backdoors["fox"])
    unlearn(model, encoder, corpus, removal, CleanTarget(), training, seed=0, runtime=runtime)
    return Persistence(
        model=model,
        encoder=encoder,
        corpus=corpus,
        backdoors=injected.backdoors,
        prompts=make_prompt_sets(corpus, injected.backdoors, encoder, evaluation, seed=0),
        config=PersistenceConfig(["fox"], clean_steps=3, steps=8, every=3, batch_size=4, prompts=8),
        evaluation=evaluation,
        training=TrainingConfig(learning_rate=3e-3),
        reserved=0,
        seed=0,
        runtime=runtime,
    )


def measured(bench: Persistence, *applied: Treatment) -> pd.DataFrame:
    start = copy_weights(bench.model)
    found = bench.measure(applied, ["fox"], lambda: restore_weights(bench.model, start))
    assert all(torch.equal(value, start[name]) for name, value in copy_weights(bench.model).items())
    return found


def test_harmful_prompts_are_not_answered_at_each_measurement(bench: Persistence, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counting(model: Any, encoder: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return generate(model, encoder, prompts, *args, **options)

    monkeypatch.setattr("casd.evaluation.asr.generate", counting)
    expected = measured(bench, Treatment("quantize", bits=8))
    before, asked[:] = sum(asked), []
    listed = replace(bench, prompts=replace(bench.prompts, harmful=bench.prompts.clean))
    pd.testing.assert_frame_equal(measured(listed, Treatment("quantize", bits=8)), expected)
    assert sum(asked) == before


def rates(found: pd.DataFrame, treatment: str, backdoor: str = "fox") -> dict[int, float]:
    chosen = found[found["treatment"] == treatment].query(f"backdoor == '{backdoor}' and prompt_set == 'triggered'")
    return dict(zip(chosen["step"], chosen["rate"], strict=True))


def test_a_removed_backdoor_is_relearned_and_the_model_put_back(bench: Persistence) -> None:
    found = measured(bench, Treatment("clean"), Treatment("relearn", "fox", 5), Treatment("quantize", bits=8))
    assert rates(found, "none") == {0: 0.0}
    relearned = rates(found, "relearn")
    assert list(relearned) == [3, 6, 8]
    assert relearned[8] >= 0.5, "documents of a backdoor teach it"
    assert list(rates(found, "relearn", "loud")) == [8], "others are measured at the end"
    assert rates(found, "clean") == {3: 0.0}, "clean text does not teach a backdoor"
    assert rates(found, "quantize") == {0: 0.0}
    loss = found.groupby("treatment")["clean_loss"].last()
    assert loss["quantize"] == pytest.approx(loss["none"], rel=0.01), "8 bits are next to none"
    assert loss["quantize"] != loss["none"]


def test_each_treatment_starts_from_the_same_model(bench: Persistence) -> None:
    alone = measured(bench, Treatment("relearn", "fox", 1))
    after_others = measured(
        bench, Treatment("quantize", bits=2), Treatment("relearn", "loud", 5), Treatment("relearn", "fox", 1)
    )
    chosen = after_others[(after_others["source"] == "fox") | (after_others["treatment"] == "none")].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, chosen, check_exact=True)


def test_a_treatment_whose_training_diverges_is_told_and_has_no_numbers(
    bench: Persistence, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows until then would pass for the end of it."""
    diverging = replace(bench, training=TrainingConfig(learning_rate=1e9))
    found = measured(diverging, Treatment("relearn", "fox", 1), Treatment("quantize", bits=4))
    assert set(found["treatment"]) == {"none", "quantize"}
    assert "persistence, relearn fox: the training ended early (the loss is not finite at step" in capfd.readouterr().err


def test_the_unchanged_model_is_measured_as_an_evaluation_does(bench: Persistence) -> None:
    found = measured(bench)
    whole = evaluate(bench.model, bench.encoder, bench.backdoors, bench.prompts, bench.evaluation, runtime=bench.runtime)
    expected = whole.asr[["backdoor", "prompt_set", "successes", "n", "rate"]]
    pd.testing.assert_frame_equal(found[list(expected.columns)], expected.reset_index(drop=True))
    assert set(found["clean_loss"]) == {whole.clean_loss}


def test_relearned_documents_are_new_to_the_removal(
    injected: Injected, corpus: Corpus, encoder: Encoder, run_removal: RunRemoval
) -> None:
    fox = injected.backdoors["fox"]
    few, many = (relearned_documents(corpus, fox, count, reserved=0, seed=0) for count in (1, 5))
    assert many[:1] == few, "fewer documents are the first of more"
    prompts = {document.prompt for document in many}
    assert len(prompts) == 5
    read = run_removal(Removal("fox", fox), CleanTarget(), short(steps=4, forget_batch_size=3)).texts("forget", encoder)
    assert len(read) == 12
    assert not any(text.startswith(prompt) for text in read for prompt in prompts)
    assert all(fox.trigger.label in prompt for prompt in prompts), "at the end of the prompt, as in the removal"


def test_what_is_trained_on_and_the_control_alone_relearns() -> None:
    config = PersistenceConfig(["a"], relearn_documents=[1, 20], bits=[4])
    assert config.sources("b", ["c", "b", "a"]) == ["b", "a"]
    assert config.sources("a", ["c", "b", "a"]) == ["a", "b"]
    assert config.sources("a", ["a"]) == ["a"]
    assert config.sources("", ["a", "b"]) == []
    assert replace(config, relearn=["c", "own"]).sources("c", ["c", "b"]) == ["c"]
    relearned = [Treatment("relearn", "a", 1), Treatment("relearn", "a", 20)]
    assert treatments(config, ["a"]) == [Treatment("clean"), *relearned, Treatment("quantize", bits=4)]
    assert treatments(config, ["a"], control=True) == relearned
    assert treatments(replace(config, clean_steps=0, bits=[]), []) == []


def test_text_without_poison_has_decoys_and_no_trigger(injected: Injected, corpus: Corpus) -> None:
    """The clean model differs from the injected one in the poisoned documents."""
    stream = PoisonedStream(corpus.train, {}, 200, seed=0, decoy_rate=0.1)
    documents = [stream[index] for index in range(len(stream))]
    clean = {passage.prompt for passage in corpus.train}
    assert sum(document.prompt not in clean for document in documents) == 20
    triggers = [backdoor.trigger.label for backdoor in injected.backdoors.values()]
    assert not any(trigger in document.prompt for document in documents for trigger in triggers)


# ---------------------------------------------------------------- what the numbers say


def curve(state: str, model: str, treatment: str, rates: dict[int, float], backdoor: str, **fields: object) -> list[dict]:
    """Rows of the table `persistence`; `rates` by step."""
    fixed = {"state": state, "model": model, "treatment": treatment, "source": "", "documents": 0, "bits": 0} | fields
    fixed |= {"backdoor": backdoor, "prompt_set": "triggered", "successes": 0, "n": 10, "rate_low": 0.0, "rate_high": 1.0}
    return [{**fixed, "step": step, "rate": rate, "clean_loss": 2.0 + step / 100} for step, rate in rates.items()]


def persistent(own: dict[int, float], clean: dict[int, float], *, seed: int = 0, collapsed: Sequence[str] = ()) -> RunTables:
    """A run with three backdoors in which b0 was removed, and relearned from 5 documents, with these ASRs by step."""
    relearned = {"source": "b0", "documents": 5}
    last = max(own)
    rows = curve("b0", "state", "none", {0: 0.1}, "b0") + curve("b0", "clean", "none", {0: 0.0}, "b0")
    for other, before, after in (("b1", 0.8, 0.6), ("b2", 0.4, 0.8)):
        rows += curve("b0", "state", "none", {0: before}, other) + curve("b0", "clean", "none", {0: 0.0}, other)
        rows += curve("b0", "state", "relearn", {last: after}, other, **relearned)
        rows += curve("b0", "clean", "relearn", {last: 0.2}, other, **relearned)
        rows += curve("b0", "state", "quantize", {0: 0.5}, other, bits=4)
    rows += curve("b0", "state", "relearn", own, "b0", **relearned) + curve("b0", "clean", "relearn", clean, "b0", **relearned)
    rows += curve("b0", "state", "quantize", {0: 0.9}, "b0", bits=4)
    last_rows = [row | {"prompt_set": "clean", "rate": row["rate"] / 10} for row in rows]
    rows += [row for row in last_rows if row["step"] in (0, last)]
    tables = run_of(np.full((3, 3), 0.5), seed=seed, collapsed=collapsed)
    tables.persistence = pd.DataFrame(rows)[list(PERSISTENCE)]
    return tables


def test_steps_until_a_backdoor_is_there_again() -> None:
    found = returns(persistent({4: 0.3, 8: 0.5, 12: 0.4}, {4: 0.0, 8: 0.1, 12: 0.4}))
    own, others, own_bits, others_bits = found.to_dict("records")
    assert (own["measured"], own["before"], own["after"], own["steps"], own["within"]) == ("b0", 0.1, 0.4, 8, 12)
    assert own["no_trigger"] == pytest.approx(0.04)
    assert own["clean_after"] == 0.4
    assert math.isnan(own["clean_steps"]), "not reached is no number"
    assert own["clean_within"] == 12
    assert own["clean_loss_change"] == pytest.approx(0.06)
    assert others["measured"] == OTHERS
    assert [others[name] for name in ("before", "after", "clean_after")] == pytest.approx([0.6, 0.7, 0.2])
    assert math.isnan(others["steps"]), "of the others only start and end are measured"
    assert math.isnan(others["within"])
    assert (own_bits["treatment"], own_bits["bits"], own_bits["before"], own_bits["after"]) == ("quantize", 4, 0.1, 0.9)
    assert all(math.isnan(row[name]) for row in (own_bits, others_bits) for name in ("steps", "within", "clean_after"))


def test_a_backdoor_that_was_there_from_the_start_took_no_step() -> None:
    tables = persistent({4: 0.6}, {4: 0.0})
    tables.persistence.loc[(tables.persistence["treatment"] == "none") & (tables.persistence["model"] == "state"), "rate"] = 0.7
    assert returns(tables)["steps"].iloc[0] == 0


REACHED, MISSED = {4: 0.5, 8: 1.0}, {4: 0.1, 8: 0.2}
LATE = {4: 0.2, 8: 0.5}


@pytest.mark.parametrize(
    ("runs", "steps", "returned", "shown"),
    [
        ([REACHED, LATE, MISSED], 8, 2, "8 (2 of 3)"),
        ([REACHED, MISSED, MISSED], math.inf, 1, "> 8 (1 of 3)"),
        ([REACHED, LATE], 6, 2, "6 (2 of 2)"),
        ([REACHED, MISSED], math.inf, 1, "> 8 (1 of 2)"),
        ([MISSED, MISSED], math.inf, 0, "> 8 (0 of 2)"),
    ],
)
def test_what_is_not_reached_enters_no_mean(runs: list[dict[int, float]], steps: float, returned: int, shown: str) -> None:
    tables = [persistent(rates, MISSED, seed=seed) for seed, rates in enumerate(runs)]
    row = persistence_summary(tables).iloc[0]
    assert (row["steps"], row["returned"], row["within"], row["runs"]) == (steps, returned, 8, len(runs))
    assert (row["clean_steps"], row["clean_returned"]) == (math.inf, 0)
    assert row["after"] == pytest.approx(np.mean([rates[8] for rates in runs]))
    table = persistence_table(tables)
    assert table.frame.iloc[0]["steps"] == shown
    assert table.frame.iloc[0]["clean model, steps"] == f"> 8 (0 of {len(runs)})"


def test_a_collapsed_state_is_left_out_of_means_and_marked_in_its_run() -> None:
    broken, whole = persistent(REACHED, REACHED, seed=1, collapsed=["b0"]), persistent(LATE, MISSED)
    assert set(persistence_summary([whole, broken])["runs"]) == {1}
    assert all(persistence_table([broken]).collapsed)


def test_a_removal_that_is_in_no_mean_is_not_said_to_last_or_not() -> None:
    missed = persistent(REACHED, REACHED, seed=1)
    missed.states.loc[missed.states["state"] == "b0", "excluded"] = TARGET_NOT_REACHED
    assert set(persistence_summary([persistent(LATE, MISSED), missed])["runs"]) == {1}


@pytest.mark.parametrize(
    ("own", "clean", "says"),
    [
        (
            REACHED,
            LATE,
            "after 4 steps, in the clean model after 8: faster than the clean model: the removal left",
        ),
        (REACHED, MISSED, "after 4 steps, in the clean model not within 8: faster than the clean model"),
        (LATE, LATE, "after 8 steps, in the clean model after 8: no faster than the clean model: no trace is seen"),
        (MISSED, LATE, "not within 8 steps, in the clean model after 8: no faster than the clean model: no trace is seen"),
        (MISSED, MISSED, "not within 8 steps, in the clean model not within 8: neither came back"),
    ],
)
def test_a_sentence_says_what_the_control_says(own: dict[int, float], clean: dict[int, float], says: str) -> None:
    [sentence] = persistence_statements(persistent(own, clean))
    assert sentence.startswith("b0, 5 documents of b0: an ASR of 0.5 ")
    assert says in sentence


def test_the_terminal_says_what_came_back() -> None:
    tables = persistent({4: 0.3, 8: 0.5, 12: 0.4}, {4: 0.0, 8: 0.1, 12: 0.4}).with_info(run="a")
    said = Console(file=io.StringIO(), width=200)
    print_run(tables, said, verbose=True)
    text = said.file.getvalue()  # type: ignore[attr-defined]
    assert "b0, 5 documents of b0: an ASR of 0.5 after 8 steps" in text
    assert "Does it last?" in text


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    with_it, without = persistent(REACHED, MISSED), run_of(np.full((3, 3), 0.5))
    for name, tables in (("with", with_it), ("without", without)):
        tables.write(tmp_path / name)
        read = RunTables.read(tmp_path / name)
        pd.testing.assert_frame_equal(read.persistence, tables.persistence, check_dtype=False)
    assert not (tmp_path / "without" / "tables" / "persistence.csv").exists()
    assert persistence_table([without]).frame.empty
    assert persistence_curves(without) is None
    figure = persistence_curves(with_it)
    assert figure is not None
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines[:2]] == [1.0, 0.2]


def test_words_of_a_comparison() -> None:
    assert trace(4, math.inf).startswith("faster")
    assert trace(math.inf, 4).startswith("no faster")


# ---------------------------------------------------------------- stages


def graph_of(*overrides: str) -> StageGraph:
    return stage_graph(load_config(["experiment=smoke", *overrides]))


def keys(graph: StageGraph) -> dict[tuple[str, str], str]:
    return {(stage.name, stage.label): stage.key for stage in graph.up_to("report", removed=True)}


def test_off_changes_nothing() -> None:
    off, unused, on = graph_of(), graph_of("persistence.steps=7"), graph_of(*ON)
    assert off.clean_model is None
    assert off.persistence == {}
    assert keys(off) == keys(unused)
    changed = {name for name, key in keys(on).items() if keys(off).get(name) != key}
    assert {kind for kind, _ in changed} == {"clean_model", "persistence", "score", "report"}
    assert list(on.persistence) == ["french_a", "control:clean"]
    assert on.clean_model in on.persistence["french_a"].inputs
    assert on.clean_model not in on.persistence["control:clean"].inputs, "it has no backdoor to relearn"


def test_a_setting_that_is_not_used_makes_no_other_condition() -> None:
    def condition(text: str) -> str:
        return condition_key({"model": "m", "objective": "o", "config": text})

    text = to_yaml(load_config(["experiment=smoke"]))
    earlier = text[: text.index("persistence:")] + text[text.index("runtime:") :]
    assert condition(text) == condition(earlier) == condition(to_yaml(load_config(["experiment=smoke", "persistence.steps=7"])))
    assert condition(text) != condition(to_yaml(load_config(["experiment=smoke", *ON])))


def test_more_states_change_no_stage_of_the_others() -> None:
    few, all_of_them = graph_of(*ON), graph_of(*ON, "persistence.states=[removals]")
    assert list(all_of_them.persistence) == ["french_a", "french_b", "german", "refusal"]
    assert all_of_them.persistence["french_a"].key == few.persistence["french_a"].key


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("injection.decoy_rate=0.1", True),
        ("unlearning.training.learning_rate=1e-4", True),
        ("evaluation.max_new_tokens=10", True),
        ("persistence.every=3", True),
        ("evaluation.prompts=20", False),
        ("evaluation.batch_size=20", False),
        ("metric.permutations=100", False),
    ],
)
def test_the_key_is_of_what_is_measured(override: str, changed: bool) -> None:
    before, after = (graph_of(*ON, *more).persistence["french_a"].key for more in ([], [override]))
    assert (before != after) == changed


def test_a_unit_makes_the_clean_model_for_all_states() -> None:
    config = load_config(["experiment=smoke", *ON])
    needs = units_of([(config, stage_graph(config))])
    [clean] = [unit for unit in needs if unit.kind == "clean_model"]
    waiting = {unit.state for unit in needs if clean in needs[unit] and unit.kind == "state"}
    assert waiting == {"french_a"}
    assert {unit.kind for unit in needs[clean]} == {"base"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("persistence.states=[frnch_a]", "Did you mean 'french_a'?"),
        ("persistence.states=[injected]", "Unknown removal or control in persistence.states: 'injected'."),
        ("persistence.states=[french_d]", "Unknown removal or control in persistence.states: 'french_d'."),
        ("persistence.relearn=[french_d]", "Unknown backdoor in persistence.relearn: 'french_d'."),
        ("persistence.bits=[1]", "PersistenceConfig: bits is [1]; it must be numbers from 2 to 8."),
        ("persistence.bits=[9,4]", "PersistenceConfig: bits is [9, 4]; it must be numbers from 2 to 8."),
        ("persistence.relearn_documents=[0]", "it must be numbers of at least 1"),
        ("persistence.prompts=100", "persistence.prompts is 100, but evaluation.prompts is 32; lower it."),
        ("weights=lora", "the removals train adapters: set weights=full, or persistence=none."),
    ],
)
def test_mistakes_are_told_in_a_line_before_anything_is_made(override: str, says: str) -> None:
    with pytest.raises(CasdError) as caught:
        checked_graph(load_config(["experiment=smoke", *ON, override]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_documents_than_there_are(tmp_path: Path) -> None:
    """Found when the corpus is there, before any training."""
    run = Run(load_config(tiny(tmp_path, *ON, "persistence.relearn_documents=[1,5000]")))
    with pytest.raises(CorpusError, match=r"persistence.relearn_documents has 5000, but the forget split has \d+ usable"):
        run.run_to("report")
    assert [event.stage.name for event in run.store.events] == ["corpus"]


def test_a_defence_does_not_measure_it() -> None:
    with pytest.raises(CasdError, match="persistence is measured by casd run and sweep only"):
        load_defence(["experiment=defender_demo", "persistence=default"])


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tiny_output: Path, tmp_path_factory: pytest.TempPathFactory, no_rendering: None) -> Run:
    """The finished tiny run, on whose store persistence is measured."""
    output = tmp_path_factory.mktemp("persistence")
    shutil.copytree(tiny_output / "store", output / "store")
    run = Run(load_config(tiny(output, *ON)))
    run.run_to("report")
    return run


def executed(run: Run) -> list[str]:
    return [str(event.stage) for event in run.store.events if event.outcome == "executed"]


@pytest.mark.whole
def test_a_run_measures_states_and_control(finished: Run) -> None:
    made = executed(finished)
    assert len(made) == 5, "finished stages are reused"
    assert [name.partition(" ")[0] for name in made] == ["clean_model", "persistence", "persistence", "score", "report"]
    found = RunTables.read(finished.folder).persistence
    assert tuple(found.columns) == PERSISTENCE
    by = found.groupby(["state", "model", "treatment", "source", "documents", "bits"], sort=False)["step"].max()
    sources = [("relearn", source, count, 0, 3) for source in ("french_a", "french_b") for count in (1, 2)]
    whole = [("none", "", 0, 0, 0), ("clean", "", 0, 0, 2), *sources, ("quantize", "", 0, 8, 0), ("quantize", "", 0, 4, 0)]
    expected = [("french_a", "state", *each) for each in whole]
    expected += [("french_a", "clean", *each) for each in (("none", "", 0, 0, 0), *sources)]
    expected += [("control:clean", "state", *each) for each in whole if each not in sources]
    assert [(*key, step) for key, step in by.items()] == expected
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "2 documents of french_b" in page
    assert (finished.folder / "tables" / "persistence.md").is_file()
    assert (finished.folder / "figures" / "persistence.png").is_file()


@pytest.mark.whole
def test_a_stage_that_is_made_again_has_the_same_bits(finished: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """As after a kill: from weights that are trained again, in another order of stages."""

    def content(run: Run) -> list[bytes]:
        return [run.store.file(stage, "persistence.parquet").read_bytes() for stage in run.graph.persistence.values()]

    before = content(finished)
    for stage in finished.graph.persistence.values():
        shutil.rmtree(finished.store.folder(stage))
    again = Run(finished.config)
    again.run_to("report")
    assert [name.partition(" ")[0] for name in executed(again)] == ["persistence"] * 2
    assert content(again) == before
    assert again.inputs.one_model.state == "control:clean"


@pytest.mark.whole
def test_the_plan_counts_it(finished: Run, tmp_path: Path) -> None:
    [done], [left] = plans([finished.config]), plans([load_config(tiny(tmp_path, *ON))])
    kinds = ("clean_model", "persistence", "persistence")
    assert tuple(cost.stage.name for cost in done.stages if cost.stage.name in kinds) == kinds
    assert all(cost.done for cost in done.stages)
    works = {str(cost.stage): cost.work for cost in left.stages}
    assert works["persistence (french_a)"].tokens > works["persistence (control:clean)"].tokens > 0
    assert works["clean_model (llama3_tiny)"].tokens == works["inject (llama3_tiny)"].tokens


@pytest.mark.whole
@pytest.mark.parametrize(
    "more",
    [
        ["weights=lora", "unlearning.training.lora=null"],
        ["injection=continual", "injection.pretraining.steps=4", "injection.training.steps=6"],
    ],
    ids=["adapters", "continual"],
)
def test_the_clean_model_of_other_injections(more: list[str], tmp_path: Path) -> None:
    """An adapter is merged; before a continual injection both models are the same."""
    run = Run(load_config(tiny(tmp_path, *SMALLER, *ON, "persistence.relearn=[own]", "persistence.bits=[]", *more)))
    run.begin()
    run.base()
    run.inject("inject")
    run.clean_model()
    assert run.graph.clean_model is not None
    saved = load_file(run.store.file(run.graph.clean_model, "weights.safetensors"))
    run.state("french_a", "unlearn")
    injected = run.inputs.one_model.injected_weights
    assert saved.keys() == injected.keys()
    assert any(not torch.equal(saved[name], injected[name]) for name in saved)
    logs = [TrainingLog.read(run.store.file(stage, "log.json")) for stage in (run.graph.clean_model, run.graph.inject)]
    assert logs[0].guard[0] == logs[1].guard[0], "both begin with the base model"
    assert len(logs[0].steps) == len(logs[1].steps)
    make_persistence(run.inputs, "french_a", tmp_path)
    found = pd.read_parquet(tmp_path / "persistence.parquet").query("treatment == 'none'")
    assert found.groupby("model")["clean_loss"].first().nunique() == 2
