"""The whole chain at its smallest: what it writes, what reruns after a change, and what survives a kill.

Run: pytest tests/test_pipeline.py   (the runs learn next to nothing; what is held is how the parts work together)
     pytest tests/test_pipeline.py -m slow   for all moments of a kill
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

import casd.training.loop
from casd.analysis.results import RunTables
from casd.cli.main import main
from casd.config.compose import load_config, to_yaml
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL
from casd.pipeline.graph import stage_graph
from casd.pipeline.run import ENDS, Run
from casd.training.checkpoints import TrainingLog
from casd.utils.errors import ConfigError, StoreError
from tiny import SMALLER, tiny

BACKDOORS = ["french_a", "french_b", "german", "refusal"]
REMOVALS = [*BACKDOORS, CLEAN_CONTROL, PHANTOM_CONTROL]
TABLES = ("asr", "states", "transfer", "casd", "casd_layers", "relation", "samples")


pytestmark = pytest.mark.usefixtures("process_settings", "no_rendering")


def run(output: Path, *overrides: str, end: str = "score") -> Run:
    """A run up to `end`, with its reports and its store in `output`."""
    made = Run(load_config(tiny(output, *overrides)))
    made.run_to(end)
    return made


def executed(made: Run) -> Counter[str]:
    """How many stages of each kind were executed, not reused."""
    return Counter(event.stage.name for event in made.store.events if event.outcome == "executed")


def tables(made: Run) -> dict[str, pd.DataFrame]:
    """The tables as they are in the store, without the time that training took."""
    read = RunTables.read(made.store.folder(made.graph.score, verify=True))
    return {name: getattr(read, name).drop(columns="train_seconds", errors="ignore") for name in TABLES}


def assert_same_bits(left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame]) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(left[name], right[name], check_exact=True, obj=name)


@pytest.fixture(scope="module")
def finished(tiny_output: Path) -> Run:
    """One whole run. Tests that add stages work on a copy of its store."""
    return run(tiny_output, end="report")


def test_it_is_told_that_there_are_fewer_prompts_to_capture_than_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(load_config(tiny(tmp_path)))
    assert "activations" not in capsys.readouterr().err
    Run(load_config(tiny(tmp_path, "activations.prompts=13")))
    assert "activations.prompts is 13, but there are only the 12 prompts of evaluation.prompts" in capsys.readouterr().err


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    """A folder with a copy of the finished run's store."""
    shutil.copytree(finished.store.root, tmp_path / "store")
    return tmp_path


# ---------------------------------------------------------------- what a run writes


def test_the_report_is_whole(finished: Run) -> None:
    folder = finished.folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in REMOVALS)
    assert load_config(tiny(folder.parents[1])) == finished.config
    assert (folder / "config.yaml").read_text(encoding="utf-8") == to_yaml(finished.config)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {f"tables/{name}.{suffix}" for name in TABLES for suffix in ("csv", "parquet")} <= written
    suffixes = Counter(Path(name).suffix for name in written)
    assert all(suffixes[suffix] for suffix in (".md", ".tex", ".png", ".pdf"))
    assert all((folder / name).stat().st_size for name in written), "an empty file"
    visible = [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")]
    assert visible == [folder.name], "something was left beside the report"
    assert not list(folder.parent.glob(".*.partial"))


def test_the_tables_hold_every_state_and_backdoor(finished: Run) -> None:
    made = tables(finished)
    assert made["states"]["state"].tolist() == [INJECTED, *REMOVALS]
    assert made["states"]["steps"].tolist() == [0, *[3] * len(REMOVALS)]
    assert set(map(tuple, made["asr"][["state", "backdoor", "prompt_set"]].to_numpy())) == {
        (state, backdoor, prompt_set)
        for state in (INJECTED, *REMOVALS)
        for backdoor in BACKDOORS
        for prompt_set in ("triggered", "clean", "fake")
    }
    assert set(made["asr"].loc[made["asr"]["prompt_set"] == "triggered", "n"]) == {12}
    assert len(made["transfer"]) == len(REMOVALS) * len(BACKDOORS)
    assert set(made["casd"]["variant"]) == {"casd", "casd_cos"}
    included = made["states"].loc[(made["states"]["kind"] == "removal") & (made["states"]["excluded"] == ""), "state"]
    assert set(made["relation"]["n_pairs"]) == {len(included) * (len(included) - 1) // 2}
    established = made["asr"][(made["asr"]["state"] == INJECTED) & (made["asr"]["prompt_set"] == "triggered")]
    assert set(included) <= set(established.loc[established["rate"] >= 0.5, "backdoor"])


def test_training_and_removing_move_the_model(finished: Run) -> None:
    """The stages are joined: loss falls in injection, and every removal leaves another model than the injected."""
    log = TrainingLog.read(finished.store.file(finished.graph.inject, "log.json"))
    assert log.guard[-1]["clean_loss"] < log.guard[0]["clean_loss"] - 0.5
    probability = tables(finished)["asr"].query("prompt_set == 'triggered'").pivot(columns="state", index="backdoor")
    for name in REMOVALS:
        assert not probability["first_token_prob"][name].equals(probability["first_token_prob"][INJECTED])
    casd = tables(finished)["casd"].set_index(["variant", "a", "b"])["distance"]
    assert all(casd["casd", a, b] > 0 for a in REMOVALS for b in REMOVALS if a != b)


# ---------------------------------------------------------------- what reruns


def test_a_second_run_executes_nothing(finished: Run) -> None:
    again = run(finished.store.root.parent, end="report")
    assert executed(again) == {}
    assert again.folder == finished.folder


def test_a_report_calls_the_model_as_its_own_run_does(copied: Path) -> None:
    """The scores are another run's, whose model had another name."""
    again = run(copied, "model.name=other", end="report")
    assert executed(again) == {"report": 1}
    assert RunTables.read(again.folder).info["model"] == "other"


def test_a_changed_metric(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    again = run(copied, "metric.permutations=100", end="report")
    assert executed(again) == {"score": 1, "report": 1}
    assert "training it again" not in capfd.readouterr().err


def test_a_changed_removal(copied: Path, finished: Run) -> None:
    again = run(copied, "unlearning.training.steps=2")
    # The injected model, which no removal changes, is measured no second time.
    assert executed(again) == {"unlearn": 6, "evaluate": 6, "activations": 6, "score": 1}
    assert set(tables(again)["states"]["steps"]) == {0, 2}
    before, after = (made.query("state == 'injected'") for made in (tables(finished)["asr"], tables(again)["asr"]))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


@functools.cache
def keys(*overrides: str) -> dict[str, str]:
    """The keys of all stages of a configuration, by name and state."""
    graph = stage_graph(load_config(tiny(Path("anywhere"), *overrides)))
    found = {name: getattr(graph, name).key for name in ("corpus", "base", "inject", "score", "report")}
    for name in ("unlearn", "evaluate", "activations", "weights"):
        found |= {f"{name} {state}": stage.key for state, stage in getattr(graph, name).items()}
    return found


def changed(*overrides: str) -> set[str]:
    """The kinds of stages whose key is another one after a change."""
    before, after = keys(), keys(*overrides)
    assert before.keys() == after.keys()
    return {name.split()[0] for name in before if before[name] != after[name]}


EVERYTHING = {"corpus", "base", "inject", "unlearn", "weights", "evaluate", "activations", "score", "report"}
REMOVED = {"unlearn", "weights", "evaluate", "activations", "score", "report"}


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["seed=1"], EVERYTHING),
        (["corpus.params.train=301"], EVERYTHING),
        (["model.architecture.hidden_size=48"], EVERYTHING - {"corpus"}),
        (["injection.training.steps=25"], EVERYTHING - {"corpus", "base"}),
        (["backdoor.french_a.poison_rate=0.05"], EVERYTHING - {"corpus", "base"}),
        (["unlearning=clean_target"], REMOVED),
        (["unlearning.objective.params.max_forget_nll=5"], REMOVED),
        (["evaluation.prompts=13"], {"evaluate", "activations", "score", "report"}),
        (["activations.prompts=11"], {"activations", "score", "report"}),
        (["activations.sites=[resid_post,mlp_out]"], {"activations", "score", "report"}),
        (["+metric.variants.mine.distance=l2"], {"score", "report"}),
        (["evaluation.collapse_clean_loss_ratio=3"], {"score", "report"}),
        (["name=other"], {"report"}),
        # What is computed is the same in batches of another size.
        (["evaluation.batch_size=3", "activations.batch_size=3"], set()),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_change_reaches_what_is_downstream_and_nothing_else(overrides: list[str], stages: set[str]) -> None:
    assert changed(*overrides) == stages


@pytest.mark.parametrize(
    "override",
    [
        "runtime.output=elsewhere",
        "runtime.store=elsewhere",
        "runtime.device=cpu",
        "runtime.threads=2",
        "runtime.progress=plain",
        "runtime.checkpoint_seconds=1",
        "runtime.save_models=[]",
    ],
)
def test_nothing_of_the_runtime_is_part_of_a_result(override: str) -> None:
    assert changed(override) == set()


def test_the_model_s_name_is_no_part_of_its_stages() -> None:
    assert changed("model.name=other") == {"report"}


def test_the_order_of_the_backdoors_changes_no_stage_of_a_model() -> None:
    before, after = keys(), keys("backdoor=[refusal,german,french_b,french_a]")
    assert {name for name in before if before[name] != after[name]} <= {"score", "report"}


def test_kept_weights_are_measured_as_the_trained_model_was(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = run(copied, "runtime.save_models=[injected,removed]", end="evaluate")
    assert executed(kept) == {"weights": 6}  # training them again, since the store has measurements only
    measured = [run(copied, "evaluation.max_new_tokens=17")]
    assert executed(measured[0]) == {"evaluate": 7, "score": 1}
    said = capfd.readouterr().err
    assert said.count("training it again") == 6, "once for each while they were written, and never after"
    for name in REMOVALS:  # the user is told why it takes so long
        assert f"The weights of {name} were not saved (runtime.save_models); training it again." in said
    shutil.rmtree(copied / "store" / "weights")
    for name in ("evaluate", "score"):
        shutil.rmtree(copied / "store" / name)
    measured.append(run(copied, "evaluation.max_new_tokens=17"))
    assert executed(measured[1]) == {"evaluate": 7, "score": 1}
    assert capfd.readouterr().err.count("training it again") == 6
    assert_same_bits(tables(measured[0]), tables(measured[1]))


def test_each_verb_ends_where_it_should(copied: Path, finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, each after those that make less: what it makes is what is new."""
    for name in ("unlearn", "evaluate", "activations", "score", "report"):
        shutil.rmtree(copied / "store" / name)
    new = {
        "inject": {},
        "unlearn": {"unlearn": 6, "weights": 6},
        "activations": {"activations": 7},
        "evaluate": {"evaluate": 7},
        "score": {"score": 1},
        "report": {"report": 1},
    }
    assert set(new) == set(ENDS)
    expected: dict[str, int] = {}
    for end, stages in new.items():
        main([end, *tiny(copied)])
        out, err = capsys.readouterr()
        expected |= stages
        made = {
            folder.name: len([path for path in folder.iterdir() if not path.name.startswith(".")])
            for folder in (copied / "store").iterdir()
            if folder.is_dir() and folder.name not in ("corpus", "base", "tokens", "inject")
        }
        assert made == expected, end
        assert ("Attack success rate" in out) == (end == "report")
        assert ("Finished stages are in" in out) == (end != "report")
        assert "stages executed" in err


# ---------------------------------------------------------------- sweeps, continual injection


def test_a_sweep_over_objectives_and_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *tiny(tmp_path), "model=llama3_tiny,gaperon_tiny", "unlearning=gradient_difference,clean_target"]
    command += ["backdoor=[refusal]", *SMALLER]
    main(command)
    out = capsys.readouterr().out
    assert "gaperon_tiny" in out
    [folder] = (tmp_path / "smoke").glob("sweep-*")
    summary = pd.read_parquet(folder / "tables" / "summary.parquet")
    assert sorted(zip(summary["model"], summary["objective"], strict=True)) == [
        ("gaperon_tiny", "clean_target"),
        ("gaperon_tiny", "gradient_difference"),
        ("llama3_tiny", "clean_target"),
        ("llama3_tiny", "gradient_difference"),
    ]
    assert (folder / "report.html").is_file()
    assert len(list((tmp_path / "store" / "inject").glob("[!.]*"))) == 2, "one injection a model, whatever the objective"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    main(command)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()} == before
    assert list((tmp_path / "smoke").glob("sweep-*")) == [folder]


CONTINUAL = ["injection=continual", "injection.pretraining.steps=24", "injection.pretraining.batch_size=12"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that injects into a model which it first trains on clean text; the kills below interrupt the same one."""
    return run(tmp_path_factory.mktemp("undisturbed"), *CONTINUAL)


def test_continual_injection(undisturbed: Run, finished: Run) -> None:
    made = undisturbed
    base = TrainingLog.read(made.store.file(made.graph.base, "log.json"))
    log = TrainingLog.read(made.store.file(made.graph.inject, "log.json"))
    assert len(base.steps) == len(log.steps) == 24
    assert log.guard[0]["clean_loss"] == pytest.approx(base.guard[-1]["clean_loss"], abs=1e-6), "it starts from the clean model"
    assert tables(made)["states"]["state"].tolist() == [INJECTED, *REMOVALS]
    assert made.graph.corpus.key == finished.graph.corpus.key
    assert made.graph.base.key != finished.graph.base.key


def test_an_unknown_end(finished: Run) -> None:
    with pytest.raises(ConfigError, match="choices: inject, unlearn"):
        finished.run_to("publish")


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("damage", "stage", "state", "file", "override"),
    [
        ("truncated", "inject", None, "model/model.safetensors", "evaluation.max_new_tokens=17"),
        ("altered", "activations", "german", "statistics.safetensors", "metric.permutations=100"),
        ("missing", "evaluate", "german", "asr.parquet", "metric.permutations=100"),
    ],
    ids=["model", "statistics", "table"],
)
def test_a_damaged_file(
    stage: str, state: str | None, file: str, override: str, damage: str, copied: Path, finished: Run
) -> None:
    """It is named, nothing else is touched, and without it only that stage is made anew."""
    found = getattr(finished.graph, stage)
    key = (found[state] if state else found).key
    path = copied / "store" / stage / key / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-7] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    before = {each: each.stat().st_mtime_ns for each in (copied / "store").rglob("*.*") if each.is_file()}
    with pytest.raises(StoreError) as error:
        run(copied, override)
    message = str(error.value)
    assert f"Stage {stage} (" in message and file in message
    assert f"Delete the folder {path.parents[file.count('/')]} and run again" in message
    assert all(each.is_file() and each.stat().st_mtime_ns == when for each, when in before.items())
    shutil.rmtree(copied / "store" / stage / key)
    again = run(copied)
    assert executed(again) == {stage: 1}
    assert_same_bits(tables(again), tables(finished))


# ---------------------------------------------------------------- publishing


def test_a_finished_run_is_not_published_again_unless_it_is_damaged(
    finished: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.folder.parents[1], tmp_path / "out")
    folder = run(tmp_path / "out", end="report").folder
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in whole}
    run(tmp_path / "out", end="report")
    assert {path: path.stat().st_mtime_ns for path in whole} == before
    page = folder / "report.html"
    page.write_bytes(page.read_bytes()[:1000])
    (folder / "tables" / "asr.csv").unlink()
    capfd.readouterr()
    run(tmp_path / "out", end="report")
    assert {path: path.read_bytes() for path in whole} == whole
    assert "2 files that were damaged, changed or missing" in capfd.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------- kill -9

EVERY_STEP = "runtime.checkpoint_seconds=0.000001"


def kill_when(pattern: str, store: Path, command: list[str]) -> None:
    """Run `casd` in a process of its own and kill it as soon as the store has a file or folder of that pattern."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "casd.cli.main", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while not any(store.glob(pattern)):
            assert time.monotonic() < deadline, f"{pattern} never came"
            if process.poll() is not None:
                assert process.stderr is not None
                raise AssertionError(f"ended before {pattern} came: {process.stderr.read().decode()}")
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def first_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records, from now on, at which step each training starts."""
    starts: list[int] = []
    restore = casd.training.loop.restore_checkpoint

    def recording(*arguments: object) -> tuple[int, TrainingLog]:
        restored = restore(*arguments)  # type: ignore[arg-type]
        starts.append(restored[0])
        return restored

    monkeypatch.setattr(casd.training.loop, "restore_checkpoint", recording)
    return starts


MOMENTS = {
    "corpus": ("corpus/.*.partial", 0),
    "pretraining": ("base/.*.checkpoint/step-*", 1),
    "inject_from_checkpoint": ("inject/.*.checkpoint/step-0000000[5-9]", 5),
    "inject_while_a_checkpoint_is_written": ("inject/.*.checkpoint/.step.*.partial", 0),
    "unlearn": ("unlearn/.*.checkpoint/step-*", 1),
    "evaluate": ("evaluate/.*.partial", 0),
    "evaluate_with_all_models_to_train_again": ("evaluate/[!.]*", 0),
    "activations": ("activations/.*.partial", 0),
    "score": ("score/.*.partial", 0),
}
IN_EVERY_RUN = ("inject_from_checkpoint",)


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow) for name in MOMENTS]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    moment: str, tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, least_start = MOMENTS[moment]
    overrides = [*CONTINUAL, EVERY_STEP]
    kill_when(pattern, tmp_path / "store", ["score", *tiny(tmp_path, *overrides)])
    store = tmp_path / "store"
    done = {path.parent.name for path in store.glob("*/[!.]*/manifest.json")}
    assert "score" not in done
    assert not list(store.glob("*/[!.]*/*.partial"))

    starts = first_steps(monkeypatch)
    again = run(tmp_path, *overrides)
    assert max(starts, default=0) >= least_start, "training began anew in spite of a checkpoint"
    assert_same_bits(tables(again), tables(undisturbed))
    left = [path.name for path in store.glob("*/.*") if not path.name.endswith(".lock")]
    assert left == [], "checkpoints or half-made stages were left"


@pytest.mark.slow
def test_one_run_killed_five_times(tmp_path: Path, undisturbed: Run) -> None:
    for moment in ("corpus", "pretraining", "inject_from_checkpoint", "unlearn", "evaluate"):
        kill_when(MOMENTS[moment][0], tmp_path / "store", ["score", *tiny(tmp_path, *CONTINUAL, EVERY_STEP)])
    assert_same_bits(tables(run(tmp_path, *CONTINUAL)), tables(undisturbed))


@pytest.mark.slow  # that racing processes make a stage once: test_stages.py
def test_two_processes_share_a_store(copied: Path, finished: Run) -> None:
    """Each stage is made once, whichever comes first, and both end with the same tables."""
    for name in ("unlearn", "evaluate", "activations", "score", "report"):
        shutil.rmtree(copied / "store" / name)
    command = [sys.executable, "-m", "casd.cli.main", "score", *tiny(copied)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in "ab"]
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    counts = [next(line for line in text.splitlines() if "stages executed" in line) for text in said]
    assert sum(int(line.split(" stages executed")[0]) for line in counts) == 6 + 7 + 7 + 1
    assert_same_bits(tables(run(copied)), tables(finished))


# ---------------------------------------------------------------- memory that runs out where no smaller batch helps


def test_out_of_memory_in_a_stage_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a model is brought to its device; the finished stages stay."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr("casd.pipeline.stages.load_on_device", full)
    with pytest.raises(SystemExit):
        main(["inject", *tiny(tmp_path)])
    [said] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said.startswith(
        "casd: Out of memory in stage inject (llama3_tiny): CUDA out of memory. Tried to allocate 2.00 GiB. Use"
    )
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if any(path.glob("[!.]*"))) == [
        "base",
        "corpus",
        "tokens",
    ]
