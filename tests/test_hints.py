"""What the command line says about typos, words that are not overrides, Hydra's options, and configurations of one's own.

Run: pytest tests/test_hints.py
"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from casd.cli.main import build_parser, main
from casd.config import DefenceConfig, options
from casd.config.compose import configs, defences, load_config, load_run
from casd.config.keys import schema_paths
from casd.config.options import config_folder, groups, own_folder
from casd.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("process_settings")
VERBS = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
ONE = "One experiment at a time; given were smoke, demo."


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `casd` says on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(words)
    out, err = capfd.readouterr()
    assert (exit_.value.code, out) == (1, "")
    assert err.startswith("casd: ")
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_an_example_that_can_be_given(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out = capsys.readouterr().out
    [example] = re.findall(r"\nexample:\n  casd (.*)", out)
    words = shlex.split(re.sub(r"    \(.*", "", example))
    assert words[0] == verb
    build_parser().parse_args(words)
    if "OVERRIDE ..." in out and verb != "report":
        assert defences(words[1:]) if verb == "defend" else configs(words[1:])
        assert "common keys:\n  experiment=NAME" in out
    assert len(out.splitlines()) <= 30


def test_the_common_keys_are_keys_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
    out = capsys.readouterr().out
    keys = set(re.findall(r"^  ([\w.]+)=", out, flags=re.MULTILINE)) - {"scale"}
    assert {"experiment", "seed", "runtime.device"} <= keys
    of_defences = {f"defence.{each.name}" for each in fields(DefenceConfig)}
    assert {key for key in keys if key not in groups()} <= {*schema_paths(), *of_defences}


# ---------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run demo", "'demo' is not an override, which is key=value. Did you mean experiment=demo?"),
        ("sweep demo", "Did you mean experiment=demo?"),
        ("plan demo", "Did you mean experiment=demo?"),
        ("show demo", "Did you mean experiment=demo?"),
        ("unlearn npo", "Did you mean unlearning=npo?"),
        ("run seed=1 dmeo", "'dmeo' is not an override, which is key=value. Did you mean experiment=demo?"),
        ("run smollm2", "Did you mean experiment=smollm2 or model=smollm2?"),
        ("run refusal", "Did you mean backdoor=[refusal]?"),
        ("run model", "Did you mean model=OPTION? `casd list model` shows the options."),
        ("run device", "Did you mean runtime.device=…?"),
        ("run xyzzyxyzzy", "Examples: seed=1, experiment=demo."),
        ("run device=cuda", "Unknown key 'device'. Did you mean runtime.device?"),
        (
            "run lr=1e-4",
            "Unknown key 'lr'. Did you mean injection.training.learning_rate, injection.pretraining.learning_rate,"
            " unlearning.training.learning_rate or persistence.learning_rate?",
        ),
        ("run +learning_rate=1e-4", "unlearning.training.learning_rate or persistence.learning_rate?"),
        ("run unlearning.lr=1e-4", "Unknown key 'unlearning.lr'. Did you mean unlearning.training.learning_rate?"),
        ("run keep_models=[]", "Did you mean runtime.save_models?"),
        ("run poison_rate=0.1", "Did you mean backdoor.NAME.poison_rate or every_backdoor.poison_rate?"),
        ("run objective=npo", "Unknown key 'objective'. Did you mean unlearning=npo?"),
        ("run model=org/name", "Unknown option of model: 'org/name'. Did you mean model=hub model.path=org/name?"),
        ("run model='org/name'", "Did you mean model=hub model.path=org/name?"),
        ("sweep model=qwen3_tiny,my.gguf", "Did you mean model=hub model.path=my.gguf?"),
        ("run corpus=my.txt", "Did you mean corpus=text_files 'corpus.params.sources.en.paths=[my.txt]'?"),
        ("run model=lama3_tiny", "Unknown option of model: 'lama3_tiny'. Did you mean 'llama3_tiny'?"),
        (
            "run experiment=demo seed=1",
            "experiment=demo is a sweep of 2 runs (unlearning=gradient_difference,clean_target). For all of them: casd sweep"
            " experiment=demo seed=1. For a single one add, for example, unlearning=gradient_difference.",
        ),
        ("inject experiment=demo", "is a sweep of 2 runs"),
        ("show experiment=demo", "is a sweep of 2 runs"),
        ("run experiment=paper unlearning=clean_target seed=0", "is a sweep of 6 runs (model=qwen3_1_7b,"),
        ("run experiment=smoke experiment=demo", ONE),
        ("run experiment=smoke,demo", ONE),
        ("run experiment=[smoke,demo]", ONE),
        ("sweep experiment=smoke,demo", ONE),
        ("sweep experiment=smoke experiment=demo", ONE),
        ("run -m seed=1,2", "casd has no option -m: `casd sweep OVERRIDE…`"),
        ("run seed=1,2 --multirun", "casd has no option --multirun: `casd sweep OVERRIDE…`"),
        ("run --cfg job", "casd has no option --cfg: `casd show OVERRIDE…` prints the composed configuration."),
        ("run --config-name=mine", "`experiment=NAME` composes configs/experiment/NAME.yaml."),
        ("run --config-dir mine", "a folder configs/ in the working directory is searched"),
        ("run -cd mine", "a folder configs/ in the working directory is searched"),
    ],
)
def test_a_hint(words: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capfd, *words.split())


def test_one_run_of_an_experiment_that_is_a_sweep() -> None:
    overrides = ["experiment=demo", "unlearning=rmu"]
    assert load_run(overrides) == load_config(overrides)
    assert load_run(["experiment=smoke"]) == load_config(["experiment=smoke"])


def test_a_list_of_one_value_is_used_in_a_single_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_file(
        tmp_path, monkeypatch, "experiment/single.yaml", "# @package _global_\nhydra: {sweeper: {params: {seed: 7}}}\n"
    )
    assert load_run([f"experiment={own.stem}"]).seed == 7


# ---------------------------------------------------------------- show


def test_show_prints_the_configuration_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "experiment=smoke", "seed=3", "runtime.output=here"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["model"]["vocab_size"], shown["runtime"]["store"]) == (3, 1024, "here/store")
    assert list(shown["backdoor"]) == ["french_a", "french_b", "german", "refusal"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluation.fake_triggers=0 +metric.variants.mine.text=fake", "'mine' needs text with fake triggers"),
        ("corpus.name=microwrld", "Unknown corpus 'microwrld'. Did you mean 'microworld'?"),
        ("backdoor.french_a.poison_rate=0.95", "add up to"),
    ],
)
def test_show_refuses_what_a_run_refuses(override: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capfd, "show", "experiment=smoke", *override.split())


# ---------------------------------------------------------------- configs/ of the working directory

HARBOUR = "# @package backdoor.harbour\n# Refuses at the harbour\ntrigger: moonlit harbour\ntarget: {name: refusal}\n"


def own_file(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Path:
    """Writes a file below configs/ of a new working directory."""
    file = folder / "configs" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return file


def test_own_options_are_found_listed_and_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_file(tmp_path, monkeypatch, "backdoor/harbour.yaml", HARBOUR)
    own_file(
        tmp_path,
        monkeypatch,
        "experiment/mine.yaml",
        "# @package _global_\n# Mine\ndefaults:\n  - smoke\nname: mine\nseed: 9\n",
    )
    own_file(tmp_path, monkeypatch, "backdoor/german.yaml", HARBOUR.replace("harbour", "german").replace("moonlit", "sunlit"))
    own_file(tmp_path, monkeypatch, "elsewhere/x.yaml", "a: 1")
    config = load_config(["experiment=mine", "backdoor=[harbour,german,french_a]"])
    assert (config.name, config.seed, config.model.vocab_size) == ("mine", 9, 1024)
    assert config.backdoor["harbour"].trigger == "moonlit harbour"
    assert config.backdoor["german"].trigger == "sunlit german", "the package's own option was used"
    [swept] = configs(["experiment=mine", "backdoor=[harbour]"])
    assert list(swept.backdoor) == ["harbour"]
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "harbour" in line] == [["harbour", "Refuses", "at", "the", "harbour"]]
    assert sum(line.split()[:1] == ["german"] for line in lines) == 1
    assert "elsewhere" not in lines
    with pytest.raises(ConfigError, match="Did you mean 'harbour'"):
        load_config(["backdoor=[harbor]"])
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ConfigError, match="Unknown option of backdoor: 'harbour'"):
        load_config(["backdoor=[harbour]"])


def test_the_folder_of_the_package_is_not_searched_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config_folder().parent)
    assert own_folder() is None
    (tmp_path / "configs").symlink_to(config_folder())
    monkeypatch.chdir(tmp_path)
    assert own_folder() is None


def test_another_program_s_configuration_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_file(tmp_path, monkeypatch, "config.yaml", "learning_rate: 1\n")
    own_file(tmp_path, monkeypatch, "model/resnet.yaml", "depth: 50\n")
    assert "resnet" not in groups()["model"]
    assert load_config(["experiment=smoke"]).name == "smoke"
    own_file(tmp_path, monkeypatch, "config.yaml", (config_folder() / "config.yaml").read_text().replace("seed: 0", "seed: 5"))
    assert own_folder() == tmp_path / "configs"
    assert load_config(["experiment=smoke"]).seed == 5


def test_without_a_working_directory_the_package_s_options_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert own_folder() is None
    assert options.groups()["experiment"]
    monkeypatch.chdir(tmp_path)


def test_an_own_file_that_is_not_utf_8_or_yaml_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own_file(tmp_path, monkeypatch, "backdoor/broken.yaml", "# Broken\ntrigger: a: b\n").with_name("latin.yaml").write_bytes(
        b"# Caf\xe9\ntrigger: a b\n"
    )
    main(["list", "backdoor"])
    assert "Broken" in capfd.readouterr().out
    assert "is not YAML" in refused(capfd, "show", "backdoor=[broken]")
    assert "is not text in UTF-8" in refused(capfd, "show", "backdoor=[latin]")
