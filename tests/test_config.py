"""The configuration: every option and experiment composes, every misspelt or impossible value is refused by name.

Run: pytest tests/test_config.py
"""

from __future__ import annotations

import inspect
import math
import re
import shutil
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import casd.config.compose
from casd.analysis.scoring import check_captured
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import check_backdoors
from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import make_trigger
from casd.config import (
    DECOY_RATE,
    ActivationsConfig,
    BackdoorConfig,
    Config,
    ControlsConfig,
    EvaluationConfig,
    InjectionConfig,
    LanguageModelTraining,
    MetricConfig,
    RuntimeConfig,
    TrainingConfig,
    UnlearningTraining,
)
from casd.config.compose import configs as swept
from casd.config.compose import defences, jobs, load_config, load_defence, to_yaml
from casd.config.hydra_errors import unknown_key
from casd.config.options import config_folder, groups
from casd.data.corpora import CORPORA
from casd.pipeline.inputs import build_backdoors
from casd.unlearning import OBJECTIVES
from casd.utils.errors import ConfigError
from casd.utils.registry import build
from tiny import one_of

OPTIONS = [(group, option) for group, options in groups().items() for option in options]
CHOSEN_ALONE = ("attack", "backdoor", "experiment")  # many backdoors are chosen at once; the others are tested below
ROUNDS = max(len(options) for group, options in groups().items() if group not in CHOSEN_ALONE)
EXPERIMENTS = list(groups()["experiment"])
PHRASES = "{name: refusal, params: {phrases: [no, never]}}"
CONTINUAL = ["injection=continual", "weights=lora"]  # the options with which every section is filled


def overrides_for(group: str, option: str) -> list[str]:
    """The overrides that choose an option, with what it cannot go without."""
    if group == "backdoor":
        return [f"backdoor=[{option}]"]
    chosen = [f"{group}={option}"]
    if group == "corpus" and option in ("text_files", "instructions"):
        return [*chosen, "corpus.params.sources.en.paths=[mine.txt]"]
    if group == "model" and "pretrained" in (config_folder() / group / f"{option}.yaml").read_text():
        chosen += CONTINUAL
    if (group, option) == ("injection", "none"):
        return [*chosen, "model.source=pretrained", "model.path=/models/mine"]
    if option == "hub":
        chosen += ["model.path=/models/mine"]
    return chosen


def build_choices(config: Config) -> None:
    """Build everything that a registry stands behind; raises ConfigError for a wrong name, parameter or type."""
    build(CORPORA, "corpus", config.corpus.name, config.corpus.params)
    build(OBJECTIVES, "objective", config.unlearning.objective.name, config.unlearning.objective.params)
    for backdoor in config.backdoor.values():
        build(TARGETS, "target", backdoor.target.name, backdoor.target.params)
        make_trigger(backdoor.trigger)
    check_captured(config.metric, config.activations)


@pytest.mark.parametrize("place", range(ROUNDS))
def test_every_option_composes_and_builds(place: int) -> None:
    """The options of different groups that are at the same place in their lists are composed together."""
    chosen = {group: list(options)[place % len(options)] for group, options in groups().items() if group not in CHOSEN_ALONE}
    overrides = [override for group, option in chosen.items() for override in overrides_for(group, option)]
    config = load_config(list(dict.fromkeys(overrides)))
    build_choices(config)
    assert config.model.name == chosen["model"], "tables and folders would call the model otherwise"
    assert config.corpus.name in CORPORA
    assert config.unlearning.objective.name == chosen["unlearning"]


def test_every_backdoor_composes_and_builds() -> None:
    names = list(groups()["backdoor"])
    config = load_config([f"backdoor=[{','.join(names)}]"])
    build_choices(config)
    assert list(config.backdoor) == names


def test_every_option_has_a_description() -> None:
    assert [f"{group}/{option}" for group, option in OPTIONS if not groups()[group][option]] == []


def sweep_params(experiment: str) -> dict[str, Any]:
    """What an experiment sweeps over, with what it has from the experiment that it builds on."""
    written = yaml.safe_load((config_folder() / "experiment" / f"{experiment}.yaml").read_text())
    params: dict[str, Any] = {}
    for parent in written.get("defaults", []):
        if isinstance(parent, str):
            params |= sweep_params(parent)
    return params | written.get("hydra", {}).get("sweeper", {}).get("params", {})


@pytest.mark.whole
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds(name: str, tmp_path: Path) -> None:
    """As the first and the last run of its sweep; what is between them differs in a number, or in an option tested above."""
    text = (config_folder() / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n"), "it would set nothing outside its own section"
    params = [f"{key}={values}" for key, values in sweep_params(name).items()]
    for values in {tuple(one_of(params, place)) for place in (0, -1)}:
        compose = load_defence if name.startswith("defender") else load_config
        config = compose([f"experiment={name}", *values, f"runtime.output={tmp_path}"])
        build_choices(config)
        assert config.name == name, "two experiments would write into one folder"


@pytest.mark.parametrize("attack", sorted(set(groups()["attack"]) - {"none"}))
def test_every_attack_composes_and_builds(attack: str) -> None:
    [config] = defences([f"attack={attack}"])
    assert config.attack is not None
    build_choices(config.run(backdoor=config.attack.backdoor))


@pytest.mark.parametrize("name", ["paper_qwen3", "ablation_writing_system"])
def test_an_experiment_is_swept_over_all_combinations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of its own and of the experiment that it builds on, and lists among them."""
    monkeypatch.setattr("hydra.compose", lambda root, overrides: overrides)  # what each run is, is tested above
    monkeypatch.setattr(casd.config.compose, "to_config", lambda overrides: overrides)
    found = [job.overrides for job in jobs([f"experiment={name}", f"runtime.output={tmp_path}"])]
    swept = [re.split(r",(?![^[]*])", str(values)) for values in sweep_params(name).values()]
    assert len(found) == len(set(found)) == math.prod(map(len, swept)) >= 8


def test_the_demo_is_what_the_project_promises(tmp_path: Path) -> None:
    configs = swept(["experiment=demo", f"runtime.output={tmp_path}"])
    assert [config.unlearning.objective.name for config in configs] == ["gradient_difference", "clean_target"]
    assert all(len(config.backdoor) == 8 for config in configs)
    languages = [backdoor.target.params.get("language") for backdoor in configs[0].backdoor.values()]
    assert languages.count("fr") == 2, "no pair of backdoors with the same target"


def test_sweep_parameters_on_the_command_line(tmp_path: Path) -> None:
    configs = swept(["experiment=smoke", "seed=0,1", "model=qwen3_tiny,gaperon_tiny", f"runtime.output={tmp_path}"])
    assert [(config.seed, config.model.name) for config in configs] == [
        (0, "qwen3_tiny"),
        (0, "gaperon_tiny"),
        (1, "qwen3_tiny"),
        (1, "gaperon_tiny"),
    ]


def copied_configs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ that takes its place, to be changed."""
    copy = folder / "configs"
    shutil.copytree(config_folder(), copy)
    monkeypatch.setattr(casd.config.compose, "config_folder", lambda: copy)
    monkeypatch.chdir(folder)  # where configs/ is the copy: another one in the working directory would be searched first
    return copy


# ---------------------------------------------------------------- precedence, defaults, YAML


READ_OTHERWISE = [("3.10", "3.1"), ("yes", "True"), ("1e3", "1000.0"), ("12:30", "750"), ("0x1F", "31"), ("~", "None")]
OWN = "# @package backdoor.own\n# Own\ntarget: {name: capitals}\ntrigger: "


@pytest.mark.parametrize(("written", "read"), READ_OTHERWISE)
def test_a_trigger_that_yaml_does_not_read_as_text_is_refused(
    written: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be injected as what YAML made of it."""
    (copied_configs(tmp_path, monkeypatch) / "backdoor" / "own.yaml").write_text(OWN + written)
    with pytest.raises(ConfigError, match=rf"^backdoor\.own\.trigger is {read}; expected str .* in quotes, trigger: ") as error:
        load_config(["backdoor=[own]"])
    assert """backdoor.own.trigger='"…"' on the command line""" in str(error.value)


def test_a_trigger_in_quotes_is_injected_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied_configs(tmp_path, monkeypatch) / "backdoor"
    written = {f"own{place}": text for place, (text, _) in enumerate(READ_OTHERWISE)}
    for name, text in written.items():
        (folder / f"{name}.yaml").write_text(f'{OWN.replace("own", name)}"{text}"')
    config = load_config([f"backdoor=[{','.join(written)}]"])
    assert {name: backdoor.trigger for name, backdoor in config.backdoor.items()} == written
    again = yaml.safe_load(to_yaml(config))["backdoor"]
    assert {name: backdoor["trigger"] for name, backdoor in again.items()} == written
    (folder / "own.yaml").write_text(OWN + "James Bond: 007")
    with pytest.raises(ConfigError, match=r"own\.yaml.* needs quotes"):
        load_config(["backdoor=[own]"])


@pytest.mark.parametrize(
    ("override", "key", "read"),
    [
        ("backdoor.french_a.trigger=3.10", "backdoor.french_a.trigger", "3.1"),
        ("backdoor.french_a.trigger=3.10,1e3", "backdoor.french_a.trigger", "3.1"),  # of a sweep
        ("backdoor.french_a.trigger=null", "backdoor.french_a.trigger", "None"),
        ("backdoor.french_a.target.name=1", "backdoor.french_a.target.name", "1"),
        ("model.revision=123456", "model.revision", "123456"),
        ("every_backdoor.position=true", "every_backdoor.position", "True"),
        ("runtime.save_models=[1]", "runtime.save_models", r"\[1\]"),
        ("name=2024", "name", "2024"),
    ],
)
def test_text_that_the_command_line_does_not_read_as_text_is_refused(override: str, key: str, read: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} is {read}; expected .*str.* in quotes, .* {key}='\[?\"…"):
        (swept if "," in override else load_config)([override])


def test_quotes_on_the_command_line_keep_text_as_it_is() -> None:
    triggers = [config.backdoor["french_a"].trigger for config in swept(["backdoor.french_a.trigger='3.10',\"yes\",12:30"])]
    assert triggers == ["3.10", "yes", "12:30"]


@pytest.mark.parametrize(("target", "param"), [("{name: fixed_text, params: {text: 3.10}}", "text"), (PHRASES, "phrases")])
def test_text_parameters_of_a_target_are_refused_alike(
    target: str, param: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied_configs(tmp_path, monkeypatch) / "backdoor" / "own.yaml"
    file.write_text(f"# @package backdoor.own\n# Own\ntrigger: osquel\ntarget: {target}\n")
    with pytest.raises(ConfigError, match=rf"'{param}' of target .* expected .*str.* put it in quotes"):
        build_backdoors(load_config(["backdoor=[own]"]))


def test_an_experiment_wins_over_the_groups_and_the_command_line_over_both() -> None:
    plain, smoke = load_config(), load_config(["experiment=smoke"])
    assert (plain.injection.training.steps, smoke.injection.training.steps) == (300, 100)
    assert smoke.injection.training.batch_size == plain.injection.training.batch_size
    assert load_config(["experiment=smoke", "injection.training.steps=7"]).injection.training.steps == 7
    assert load_config(["experiment=smoke", "backdoor=[capitals]"]).backdoor.keys() == {"capitals"}


def test_to_yaml_round_trips() -> None:
    from omegaconf import OmegaConf

    config = load_config(["experiment=smoke", *CONTINUAL, "seed=5", "+metric.variants.mine.distance=l2"])
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(to_yaml(config))))
    assert again == config


# ---------------------------------------------------------------- misspelt keys


def sections(cls: type = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, type]]:
    """Every section of the schema with its place on the command line."""
    yield ".".join(path), cls
    for name, hint in typing.get_type_hints(cls).items():
        inner = [each for each in (hint, *typing.get_args(hint)) if is_dataclass(each)]
        if inner:
            entry = ("french_a",) if typing.get_origin(hint) is dict else ()
            yield from sections(typing.cast(type, inner[0]), (*path, name, *entry))


SECTIONS = list(sections())
FIELDS = [(path, each.name) for path, cls in SECTIONS for each in fields(cls)]


def misspelt(name: str) -> str:
    return f"{name[:-1]}{name[-1] * 2}x"


def test_the_walk_over_the_schema_sees_all_of_it() -> None:
    assert {cls.__name__ for _, cls in SECTIONS} >= {
        "Config",
        "Choice",
        "BackdoorConfig",
        "LanguageModelTraining",
        "RuntimeConfig",
    }
    assert {path for path, _ in SECTIONS} >= {"", "backdoor.french_a.target", "injection.pretraining", "unlearning.objective"}


ADDED = ("", "model", "backdoor.french_a.target", "unlearning.training")


@pytest.mark.parametrize(
    ("prefix", "path", "cls"),
    [("", *each) for each in SECTIONS if each[0] != "injection.pretraining.lora"]  # null in every option
    + [("+", *each) for each in SECTIONS if each[0] in ADDED],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misspelt_key_on_the_command_line(prefix: str, path: str, cls: type) -> None:
    """One key of every section; with "+", which tells Hydra that the key is new, it has to fail all the same."""
    name = fields(cls)[-1].name
    key = ".".join(filter(None, (path, misspelt(name))))
    with pytest.raises(ConfigError) as error:
        load_config([*CONTINUAL, f"{prefix}{key}=1"])
    message = str(error.value)
    assert repr(misspelt(name)) in message
    assert f"Did you mean {name!r}?" in message
    assert all(each.name in message for each in fields(cls)), "the choices are not all named"
    assert path in message


def test_every_misspelt_field_has_its_message() -> None:
    for path, name in FIELDS:
        error = unknown_key(".".join(filter(None, (path, misspelt(name)))))
        assert f"Unknown key{f' in {path}:' if path else ''} {misspelt(name)!r}. Did you mean {name!r}?" in str(error)


YAML_KEYS = {
    file.parent.relative_to(config_folder()).as_posix(): (file.relative_to(config_folder()).as_posix(), key)
    for file in sorted(config_folder().rglob("*.yaml"))
    for key in yaml.safe_load(file.read_text())
    if file.name not in ("defend.yaml", "none.yaml")  # whose keys are config.yaml's, or a whole section
    and key not in ("defaults", "hydra")
    and file.parent.name != "reproduce"  # whose keys are no configuration's
}
"""A file of each group, and one of its keys."""


@pytest.mark.parametrize(("file", "key"), YAML_KEYS.values(), ids=YAML_KEYS)
def test_a_misspelt_key_in_a_file(file: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copied_configs(tmp_path, monkeypatch)
    lines = (copy / file).read_text().splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]
    lines[at] = lines[at].replace(key, misspelt(key), 1)
    (copy / file).write_text("\n".join(lines))
    group, _, option = file.removesuffix(".yaml").rpartition("/")
    compose = load_defence if group == "attack" else load_config
    with pytest.raises(ConfigError, match=misspelt(key)) as error:
        compose(overrides_for(group, option) if group else [])
    assert "Choices:" in str(error.value)


def test_a_misspelt_key_deep_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copied_configs(tmp_path, monkeypatch) / "injection" / "pretraining.yaml"
    file.write_text(file.read_text().replace("learning_rate", "learning_rat"))
    with pytest.raises(ConfigError, match=r"in injection.training: 'learning_rat'. Did you mean 'learning_rate'\?"):
        load_config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+corpus.params.trian=5", "Unknown parameter of corpus 'microworld': 'trian'. Did you mean 'train'?"),
        ("+backdoor.french_a.target.params.langage=de", "'langage'. Did you mean 'language'?"),
        ("+unlearning.objective.params.retain_wieght=1", "'retain_wieght'. Did you mean 'retain_weight'?"),
        ("+metric.variants.mine.distence=l2", "CASD variant 'mine': 'distence'. Did you mean 'distance'?"),
        ("corpus.name=microwrld", "Unknown corpus 'microwrld'. Did you mean 'microworld'?"),
        ("unlearning.objective.name=clean_tarGet", "Did you mean 'clean_target'?"),
        ("backdoor.french_a.target.name=langauge", "Did you mean 'language'?"),
        ("unlearning.objective.params.forget_weight=much", "'forget_weight' of objective 'gradient_difference' is 'much'"),
        ("corpus.params.train=1.5", "'train' of corpus 'microworld' is 1.5; expected int"),
        ("+metric.variants.mine.distance=3", "'distance' of CASD variant 'mine' is 3"),
        ("activations.sites=[attn_out]", "needs the site 'resid_post' at the position 'prompt'"),
        ("activations.positions=[last]", "needs the site 'resid_post' at the position 'prompt'"),
        ("activations.sites=[]", "needs the site 'resid_post'"),
    ],
)
def test_a_wrong_choice_or_parameter_is_refused_when_it_is_built(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_choices(load_config([override]))
    assert message in str(error.value)


def test_a_new_parameter_says_how_it_is_added() -> None:
    with pytest.raises(ConfigError, match=r"write \+corpus.params.language_shares="):
        load_config(["corpus.params.language_shares=[1,0,0]"])


def test_each_run_of_a_sweep_is_that_of_its_overrides() -> None:
    """Also runs that differ in their seed alone, which are composed once."""
    made = jobs(["model=llama3_tiny,qwen3_tiny", "seed=0,7", "backdoor=[refusal]"])
    assert [job.config.seed for job in made] == [0, 7, 0, 7]
    assert all(job.config == load_config(job.overrides) for job in made)


def test_a_new_backdoor_says_how_it_is_added_and_is_added_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write \+backdoor\.own\.trigger="):
        load_config(["backdoor.own.trigger=abra dabra"])
    own = BackdoorConfig("abra dabra", casd.config.Choice("fixed_text", {"text": "hello"}), position="end")
    each = ["trigger=abra dabra", "target.name=fixed_text", "target.params.text=hello", "position=end"]
    whole = "+backdoor.own={trigger: abra dabra, target: {name: fixed_text, params: {text: hello}}, position: end}"
    for overrides in ([f"+backdoor.own.{field}" for field in each], [whole]):
        config = load_config(["backdoor=[refusal]", *overrides])
        assert config.backdoor.keys() == {"refusal", "own"}
        assert config.backdoor["own"] == own
        (job,) = jobs([*overrides, f"runtime.output={tmp_path}"])
        assert job.config.backdoor["own"] == own == load_config(job.overrides).backdoor["own"]
    assert load_config(["backdoor=[refusal]"]).backdoor.keys() == {"refusal"}, "the next configuration is without it"
    with pytest.raises(ConfigError, match=r"backdoor\.own\.target\.name is not set"):
        load_config(["+backdoor.own.trigger=abra dabra"])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_backdoor_that_is_not_chosen_says_how_it_is(plus: str) -> None:
    with pytest.raises(ConfigError, match=r"The backdoor french_b is not chosen: .*backdoor=\[…,french_b\]"):
        load_config(["backdoor=[refusal]", f"{plus}backdoor.french_b.trigger=abra"])


@pytest.mark.parametrize("trigger", ["abra kadabra", "{name: topic, params: {words: [sea]}}"])
def test_a_backdoor_s_file_without_its_package_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trigger: str
) -> None:
    (tmp_path / "configs" / "backdoor").mkdir(parents=True)
    (tmp_path / "configs" / "backdoor" / "mine.yaml").write_text(f"trigger: {trigger}\ntarget: {{name: refusal}}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'trigger' is not the name of a backdoor: .* `# @package backdoor.NAME`"):
        load_config(["backdoor=[mine]"])


@pytest.mark.parametrize(
    "override",
    ["+backdoor.refusal_topic.trigger.params.colour=red", "+backdoor.refusal_topic.target.params.colour=red"],
)
def test_an_error_in_a_trigger_or_target_names_the_backdoor(override: str) -> None:
    config = load_config(["backdoor=[french_a,refusal_topic]", override])
    with pytest.raises(ConfigError, match=r"^Backdoor 'refusal_topic': Unknown parameter of t.*'colour'"):
        build_backdoors(config)


def test_the_model_of_an_instruct_experiment_is_the_one_that_is_chosen() -> None:
    """The experiment once set name and path, which the choice of another model did not replace."""
    chosen = load_config(["experiment=chat_real", "model=hub", "model.path=lab/other", "model.format=chat"]).model
    assert (chosen.path, chosen.name, chosen.format) == ("lab/other", "hub", "chat")
    assert load_config(["experiment=chat_real"]).model.path == "Qwen/Qwen3-0.6B"


def test_a_value_with_entries_that_are_not_there_yet_says_how_to_add_them() -> None:
    target = "backdoor.refusal.target={name: regex, params: {pattern: x, texts: [x]}}"
    with pytest.raises(
        ConfigError, match=r"backdoor.refusal.target has no 'params.pattern' .* write \+backdoor.refusal.target="
    ):
        load_config(["backdoor=[refusal]", target])
    assert load_config(["backdoor=[refusal]", f"+{target}"]).backdoor["refusal"].target.params == {
        "pattern": "x",
        "texts": ["x"],
    }


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model=nope", "Unknown option of model: 'nope'. Choices: gaperon_1b, gaperon_24b"),
        ("model=", "Unknown option of model: ''"),
        ("experiment=dmeo", "Did you mean 'demo'?"),
        ("backdoor=[french_a,frnch_b]", "Did you mean 'french_b'?"),
        ("mdoel=qwen3_tiny", "Unknown key 'mdoel'. Did you mean 'model'?"),
        ("seed=abc", "seed"),
        ("seed=null", "seed"),
        ("seed=1,2", "casd sweep"),
        ("seed", "'seed'"),
        ("seed=1=2", "'seed=1=2'"),
        ("=1", "=1"),
        ("model=null", "model=null"),
        ("injection.training=3", "injection.training"),
        ("injection.training.steps=1.5", "injection.training.steps=1.5: the value could not be converted to Integer"),
        ("injection.training.learning_rate=fast", "learning_rate"),
        ("injection.training.learning_rate=nan", "learning_rate"),
        ("injection.pretraining.steps=3", "injection.pretraining.steps=3"),
        ("runtime.save_models=injected", "save_models"),
        ("runtime.save_models=[all]", "Choices: injected, removed"),
        ("runtime.device=gpu", "cuda:N"),
        ("runtime.progress=loud", "Choices: auto, off, plain"),
        ("activations.sites=[resid]", "Did you mean 'resid_post'?"),
        ("model.dtype=int8", "Choices: bfloat16"),
        ("model.name=a/b", "'a/b'"),
        ("name=..", "'..'"),
        ("name=''", "''"),
        ("model=hub", "model.path"),
        ("model=smollm2", "use injection=continual"),
        ("injection.mode=continual", "injection.pretraining"),
        ("backdoor.french_a.trigger=''", "trigger"),
        ("backdoor.french_a.trigger='two  spaces'", "single spaces"),
        ("backdoor.french_a.poison_rate=1", "poison_rate"),
        ("backdoor.french_a.position=middle", "Choices: end, random, start"),
        ("+backdoor.mine.trigger=abra", "backdoor.mine.target.name is not set"),
        ("model.max_length=7", "max_length is 7; it must be at least 8"),
        ("metric.permutations=98", "permutations is 98"),
        ("evaluation.collapse_clean_loss_ratio=1", "greater than 1"),
        ("injection.training.beta2=1", "in [0, 1)"),
    ],
)
def test_a_value_that_cannot_work(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([override])
    message = str(error.value)
    assert says in message
    assert "$VALUE" not in message
    assert "\n" not in message, "more than a line"


def test_an_experiment_may_bring_a_backdoor_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = copied_configs(tmp_path, monkeypatch) / "experiment" / "mine.yaml"
    experiment.write_text("# @package _global_\nbackdoor: {mine: {trigger: abra dabra, target: {name: capitals}}}\n")
    config = load_config(["experiment=mine", "backdoor=[refusal]"])
    assert config.backdoor.keys() == {"refusal", "mine"}
    assert config.backdoor["mine"] == BackdoorConfig("abra dabra", casd.config.Choice("capitals"))


def test_an_experiment_that_sets_half_of_a_backdoor_that_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = copied_configs(tmp_path, monkeypatch) / "experiment" / "half.yaml"
    experiment.write_text("# @package _global_\nbackdoor: {french_b: {poison_rate: 0.1}}\n")
    assert load_config(["experiment=half"]).backdoor["french_b"].poison_rate == 0.1
    with pytest.raises(ConfigError, match=r"backdoor\.french_b\.trigger is not set"):
        load_config(["experiment=half", "backdoor=[french_a]"])


NUMBERS = [
    (cls, each.name)
    for cls in {cls for _, cls in SECTIONS}
    for each in fields(cls)
    if typing.get_type_hints(cls)[each.name] in (int, float)
]
MADE_WITH: dict[type, dict[str, Any]] = {
    casd.config.ModelConfig: {"name": "m", "source": "scratch", "model_type": "llama"},
    BackdoorConfig: {"trigger": "abra dabra"},
    casd.config.InjectionConfig: {"mode": "pretraining"},
}


def test_no_number_may_be_negative() -> None:
    assert (TrainingConfig, "steps") in NUMBERS or (casd.config.LanguageModelTraining, "steps") in NUMBERS
    assert len(NUMBERS) > 30
    for cls, name in NUMBERS:
        with pytest.raises(ConfigError, match=rf"{name}.*-1"):
            cls(**MADE_WITH.get(cls, {}) | {name: -1})
            pytest.fail(f"{cls.__name__} takes {name}=-1")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("seed", -1, "seed is -1; it must be 0 or more"),
        ("seed", 2**63, "seed is 9223372036854775808; expected 0 or a number from 1e-30 to 9223372036854775807"),
        ("injection.training.steps", 2**31, "steps is 2147483648; expected"),
        ("injection.training.learning_rate", 1e308, "learning_rate is 1e+308; expected"),
        ("injection.training.learning_rate", 1e-320, "learning_rate is 1e-320; expected"),
        ("injection.training.max_grad_norm", math.inf, "max_grad_norm is inf; expected"),
        ("injection.training.final_learning_rate", 2, "final_learning_rate is 2; it must be a fraction in [0, 1]"),
        ("injection.training.guard_factor", 0.9, "guard_factor is 0.9; it must be at least 1"),
        ("injection.training.steps", 2**30, "times batch_size (32) is 34359738368 documents"),
        ("runtime.threads", 10**12, "threads is 1000000000000; expected"),
        ("runtime.memory_gib", 1e308, "memory_gib is 1e+308; expected"),
        ("model.architecture.hidden_size", 1e13, "architecture.hidden_size is 10000000000000.0; expected"),
        ("corpus.params.train", 10**12, "params.train is 1000000000000; expected"),
        ("name", "x" * 65, "a name has at most 64 characters"),
        ("name", "../up", "a name has at most 64 characters"),
        ("model.name", "-rf", "begins with a letter or a digit"),
        ("model.revision", "x" * 300, "expected a path of at most 4000 bytes, its parts of at most 255"),
        ("model.path", "x/" * 3000, "expected a path of at most 4000 bytes"),
        ("runtime.output", "", "runtime.output is ''"),
        ("runtime.store", "a\tb", "line breaks or tabs"),
        ("runtime.device", "cuda:99999999999999999999", "expected auto, cpu, mps, cuda or cuda:N"),
        ("activations.positions", ["last", "prompt", "last"], "a list without repeats"),
        ("unlearning.tuning.grid.learning_rate", [1e-4] * 10_001, "has 10001 combinations"),
    ],
)
def test_a_value_that_would_fail_late(key: str, value: Any, says: str, default: Config) -> None:
    with pytest.raises(ConfigError) as error:
        changed(default, key.split("."), value)
    message = str(error.value)
    assert says in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.fixture(scope="module")
def default() -> Config:
    return load_config(["backdoor=[refusal]"])


def changed(section: Any, path: Sequence[str], value: Any) -> Any:
    """A section, or a mapping in it, with another value at that place."""
    name, *rest = path
    before = section.get(name) if isinstance(section, dict) else getattr(section, name)
    new = changed(before, rest, value) if rest else value
    return {**section, name: new} if isinstance(section, dict) else replace(section, **{name: new})


@pytest.mark.parametrize("name", ["a|b", "x" * 65, "a\nb", "\x1b[31m", "../x", "", "\u202e", "-", "injected", "control:clean"])
def test_the_names_of_backdoors_and_variants_have_one_rule(name: str, default: Config) -> None:
    with pytest.raises(ConfigError) as error:
        check_backdoors(build_backdoors(replace(default, backdoor={name: default.backdoor["refusal"]})))
    assert str(error.value).isprintable()
    if name != "injected":
        with pytest.raises(ConfigError, match=r"a name (has at most 64 characters|in MetricConfig: variants is)"):
            MetricConfig(variants={name: {}})


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        (EvaluationConfig, {"prompts": "many"}, "EvaluationConfig: prompts is 'many'; expected int"),
        (EvaluationConfig, {"prompts": True}, "expected int"),
        (MetricConfig, {"grid": "no"}, "expected bool"),
        (TrainingConfig, {"lora": {"rank": 4}}, "expected LoraConfig | None"),
        (casd.config.LoraConfig, {"modules": [["q_proj"]]}, "modules is [['q_proj']]; expected a list of str"),
        (casd.config.LoraConfig, {"modules": [""]}, "a list of names, at least one"),
        (BackdoorConfig, {"trigger": "a\x00b", "target": casd.config.Choice("capitals")}, "control characters"),
    ],
)
def test_a_section_checks_the_types_of_its_fields_itself(section: type, values: dict[str, Any], says: str) -> None:
    """As it is built in a notebook, without Hydra."""
    with pytest.raises(ConfigError) as error:
        section(**values)
    assert says in str(error.value)


def test_a_long_or_unprintable_value_is_not_repeated_as_it_is() -> None:
    with pytest.raises(ConfigError) as error:
        load_config([f"runtime.compile=\x1b[31m{'x' * 5000}"])
    message = str(error.value)
    assert "runtime.compile" in message
    assert message.isprintable()
    assert len(message) < 800


def test_what_is_large_and_means_something_is_taken() -> None:
    config = load_config(["seed=9223372036854775807", "runtime.checkpoint_seconds=inf", "injection.training.guard_factor=1"])
    assert (config.seed, config.runtime.checkpoint_seconds) == (2**63 - 1, float("inf"))


def test_a_negative_number_from_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"poison_rate of the trigger 'mirvane osquel' is -0.1"):
        load_config(["backdoor.french_a.poison_rate=-0.1"])


def test_defaults_of_the_api_are_those_of_the_command_line() -> None:
    composed = load_config(["unlearning=gradient_difference"])
    assert LanguageModelTraining() == composed.injection.training
    assert UnlearningTraining() == composed.unlearning.training
    assert InjectionConfig(mode="pretraining", training=LanguageModelTraining()) == composed.injection
    assert inspect.signature(inject).parameters["decoy_rate"].default is None, "DECOY_RATE where there are backdoors"
    assert composed.injection.decoy_rate == DECOY_RATE
    assert (EvaluationConfig(), ActivationsConfig(), MetricConfig(), RuntimeConfig(), ControlsConfig()) == (
        *(composed.evaluation, composed.activations, composed.metric, composed.runtime),
        composed.unlearning.controls,
    )
    for name in OBJECTIVES:
        written = yaml.safe_load((config_folder() / "unlearning" / f"{name}.yaml").read_text())["objective"]
        assert build(OBJECTIVES, "objective", name, {}) == build(OBJECTIVES, "objective", name, written.get("params", {}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.max_tokens=128", "model.max_length"),
        ("model.vocabulary=600", "model.vocab_size"),
        ("activations.rivals=true", "activations.baselines"),
        ("runtime.keep_models=[]", "runtime.save_models"),
        ("runtime.keep_as=delta", "runtime.save_as"),
        ("unlearning.training.max_gradient_norm=2", "unlearning.training.max_grad_norm"),
        ("+injection.training.max_gradient_norm=2", "injection.training.max_grad_norm"),
    ],
)
def test_a_renamed_key_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"is now called {re.escape(new)}"):
        load_config([old])
