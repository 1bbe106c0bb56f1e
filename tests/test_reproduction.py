"""Reproducing the paper's tables: claims against runs of known truth, scales, and a whole reproduction of the smallest runs.

Run: python -m pytest tests/test_reproduction.py
"""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.synthetic import related, run_of
from tests.tiny import one_of, tiny

from casd.analysis.grouping import POOLED
from casd.analysis.relation import relate
from casd.analysis.results import RunTables
from casd.cli.main import main
from casd.config.compose import load_config
from casd.report.results_page import section_text
from casd.reproduction.catalogue import EXHIBITS, RUN_SETS
from casd.reproduction.claims import CLAIMS
from casd.reproduction.exhibits import SHOWN
from casd.reproduction.factors import factors_statements, factors_table, one_at_a_time
from casd.reproduction.scales import Scale, read_scale, scales
from casd.reproduction.verdicts import Evidence, Verdict, above_zero, all_of, headline, negative
from casd.utils.errors import ConfigError

N = 8
RHOS = ("rho", "rho_pairs", "rho_partial")
CONTROLS = {"control:clean": [1.0] * N, "control:phantom": [1.0] * N}


def evidence(*runs: RunTables) -> Evidence:
    return Evidence(runs)


def verdicts(claim: str, *runs: RunTables) -> dict[tuple[str, str], Verdict]:
    return {(each.model, each.objective): each for each in CLAIMS[claim].decide(evidence(*runs))}


def run_with(suppression: np.ndarray, sign: float = 1.0, **kwargs: object) -> RunTables:
    """A run whose removals suppress each other so much, with a CASD that falls (or with `sign` -1 rises) with it."""
    after = 1.0 - suppression
    np.fill_diagonal(after, 0.0)
    mutual = (suppression + suppression.T) / 2
    centered = mutual - (mutual.mean(axis=0)[:, None] + mutual.mean(axis=0)[None, :])
    distance = 2.0 - sign * centered
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    same_target = np.ones((N, N))
    same_target[0, 1] = same_target[1, 0] = 0
    baselines = {"same_target": same_target}
    tables = run_of(after, controls=CONTROLS, distances={"casd": distance}, baselines=baselines, **kwargs)  # type: ignore[arg-type]
    rho = pd.DataFrame([{"variant": "casd", "response": "suppression", "n_backdoors": N} | dict.fromkeys(RHOS, -0.9 * sign)])
    return replace(tables, relation=rho.reindex(columns=[*tables.relation.columns]))


def random_suppression(seed: int, mean: float, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(mean + spread * rng.standard_normal((N, N)), -1, 1)


# ---------------------------------------------------------------- what decides


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.01, 0.3, "holds"), (-0.1, 0.04, "does not hold"), (-0.1, 0.06, "not decided"), (math.nan, math.nan, "not decided")],
)
def test_a_mean_is_decided_by_its_interval(low: float, high: float, outcome: str) -> None:
    assert above_zero(low, high) == outcome


@pytest.mark.parametrize(
    ("rho", "p", "limits", "outcome"),
    [
        (-0.4, 0.01, (), "holds"),
        (-0.4, 0.01, (-0.7, -0.1), "holds"),
        (-0.4, 0.01, (-0.9, 0.1), "not decided"),
        (0.4, 0.01, (), "does not hold"),
        (0.4, 0.01, (0.1, 0.7), "does not hold"),
        (0.4, 0.01, (-0.1, 0.9), "not decided"),
        (-0.02, 0.8, (), "not decided"),
        (-0.4, 0.2, (-0.7, -0.1), "not decided"),
        (math.nan, math.nan, (math.nan, math.nan), "not decided"),
    ],
)
def test_a_correlation_is_decided_by_its_test_and_its_interval(
    rho: float, p: float, limits: tuple[float, ...], outcome: str
) -> None:
    assert negative(rho, p, *limits) == outcome


def test_one_failure_is_enough_and_doubt_is_doubt() -> None:
    assert all_of(["holds", "holds"]) == "holds"
    assert all_of(["holds", "not decided"]) == "not decided"
    assert all_of(["not decided", "does not hold", "holds"]) == "does not hold"
    assert all_of([]) == "not decided"


# ---------------------------------------------------------------- claims against known truth


def test_factors_are_compared_with_the_setting_that_they_change() -> None:
    """Others suppressed by 0.1 at eight steps and with seven passages, by 0.5 at 32; at two the removed backdoor stays."""

    def at(steps: int, suppression: float, own: float = 0.0, passages: int = 5) -> RunTables:
        after = np.full((N, N), 1 - suppression)
        np.fill_diagonal(after, own)
        config = f"unlearning:\n  training:\n    steps: {steps}\ncorpus:\n  passages: {passages}\n"
        return run_of(after, controls=CONTROLS, config=config)

    frame = one_at_a_time(evidence(at(32, 0.5), at(8, 0.1, passages=7), at(8, 0.1), at(2, 0.0, own=0.9)))
    changed = ["nothing", "corpus.passages=7", "unlearning.training.steps=2", "unlearning.training.steps=32"]
    assert frame["changed"].tolist() == changed
    table = factors_table(frame).frame
    assert table["net of phantom"].tolist() == [
        "0.10 [0.10, 0.10]",
        "0.10 [0.10, 0.10]",
        "0.00 [0.00, 0.00]",
        "0.50 [0.50, 0.50]",
    ]
    assert table["injected ASR"].tolist() == ["1.00"] * 4
    first, differing, left_out = factors_statements(frame)
    assert "0.10 [0.10, 0.10], net of the phantom" in first
    assert differing.startswith(
        f"Of 2 changes, those after which it weakens them more: {changed[3]} (0.40 [0.40, 0.40]); less: none;"
    )
    assert table["more than first"].tolist() == ["–", "0.00 [0.00, 0.00]", "-0.10 [-0.10, -0.10]", "0.40 [0.40, 0.40]"]
    assert left_out == f"Left out, since too few backdoors were injected or removed: {changed[2]}."


def test_factors_that_share_no_seed_are_not_compared() -> None:
    def at(steps: int, seed: int) -> RunTables:
        config = f"unlearning:\n  training:\n    steps: {steps}\n"
        return run_of(np.where(np.eye(N, dtype=bool), 0.0, 0.5), controls=CONTROLS, config=config, seed=seed)

    frame = one_at_a_time(evidence(at(8, 0), at(32, 1)))
    assert frame["difference"].isna().all()
    assert factors_statements(frame)[1:] == [
        "Not compared, since too few backdoors and seeds are in both: unlearning.training.steps=32."
    ]


def test_a_factor_is_compared_within_seed_and_backdoors() -> None:
    """32 steps suppress every pair by 0.2 more, while pairs and seeds differ by more than that."""
    rng = np.random.default_rng(0)

    def at(steps: int, seed: int, suppression: np.ndarray) -> RunTables:
        after = 1 - suppression
        np.fill_diagonal(after, 0)
        return run_of(after, controls=CONTROLS, config=f"unlearning:\n  training:\n    steps: {steps}\n", seed=seed)

    drawn = [rng.uniform(0.1, 0.7, (N, N)) + 0.1 * seed for seed in range(2)]
    runs = [at(steps, seed, drawn[seed] + 0.2 * (steps == 32)) for steps in (8, 32) for seed in range(2)]
    found = evidence(*runs)
    record = one_at_a_time(found).set_index("changed").loc["unlearning.training.steps=32"]
    low, high = (record[f"suppression_net_phantom_{side}"] for side in ("low", "high"))
    assert high - low > 0.1
    assert [record["difference"], record["difference_low"], record["difference_high"]] == pytest.approx([0.2] * 3)


def test_factors_have_the_relation_of_each_setting() -> None:
    found = evidence(run_with(random_suppression(0, 0.4, 0.1)))
    frame = one_at_a_time(found)
    headline = found.predictors.set_index("predictor").loc["casd"]
    assert frame["rho:casd"].tolist() == [headline["rho"]]
    assert factors_table(frame).frame["ρ casd"].str.fullmatch(r"-?[01]\.\d\d \[.+\]").all()


def test_the_suppression_of_others_is_found_where_it_was_planted_and_not_where_it_was_not() -> None:
    strong = [run_with(random_suppression(seed, 0.4, 0.1), seed=seed) for seed in range(3)]
    none = [run_with(random_suppression(seed, 0.0, 0.02), seed=seed) for seed in range(3)]
    vague = [run_with(np.tile([0.5, -0.4] * (N // 2), (N, 1)))]  # half of the backdoors this way, half that
    assert verdicts("others_weaken", *strong)["m", "o"].outcome == "holds"
    assert verdicts("others_weaken", *none)["m", "o"].outcome == "does not hold"
    assert verdicts("others_weaken", *vague)["m", "o"].outcome == "not decided"
    assert "24 of 24" in verdicts("others_weaken", *strong)["m", "o"].statistic


def test_suppression_that_controls_show_as_well_is_none() -> None:
    """All others at 0.6, and under both controls at 0.6, too."""
    after = np.full((N, N), 0.6)
    np.fill_diagonal(after, 0.0)
    run = run_of(after, controls=dict.fromkeys(CONTROLS, [0.6] * N))
    for claim in ("others_weaken", "more_than_phantoms", "clean_text_spares"):
        assert verdicts(claim, run)["m", "o"].outcome == "does not hold", claim
    assert verdicts("clean_text_spares", run_with(random_suppression(0, 0.2, 0.1)))["m", "o"].outcome == "holds"


def test_casd_goes_with_suppression_where_that_was_planted_and_has_the_wrong_sign_where_that_was() -> None:
    with_it = [run_with(random_suppression(seed, 0.4, 0.15), seed=seed) for seed in range(3)]
    against = [run_with(random_suppression(seed, 0.4, 0.15), -1.0, seed=seed) for seed in range(3)]
    assert verdicts("casd_tells", *with_it)["m", "o"].outcome == "holds"
    assert verdicts("casd_tells", *against)["m", "o"].outcome == "does not hold"
    assert verdicts("casd_tells_pairs", *with_it)["m", "o"].outcome == "holds"
    assert verdicts("casd_tells_more_than_targets", *with_it)["m", "o"].outcome == "holds"
    assert verdicts("casd_tells_more_than_targets", *against)["m", "o"].outcome == "does not hold"


def test_three_backdoors_cannot_decide_on_pairs() -> None:
    after = 1.0 - 0.5 * np.eye(3)
    run = run_of(after, controls={"control:clean": [1.0] * 3, "control:phantom": [1.0] * 3})
    verdict = verdicts("casd_tells", run)["m", "o"]
    assert verdict.outcome == "not decided"
    assert "4 included removals" in verdict.statistic


def test_rho_its_p_and_its_values_in_single_runs_are_of_the_same_pairs() -> None:
    """Excluded removals turn each run's correlation round; a run of three included ones has a correlation of its own."""
    runs, rhos = [], []
    for seed in range(3):
        suppression = random_suppression(seed, 0.4, 0.15)
        suppression[0], suppression[:, 1] = np.linspace(-1, 1, N), np.linspace(1, -1, N)
        whole = run_with(suppression, seed=seed)
        distances = {"casd": _matrix(whole, "casd")}
        run = related(run_of(1 - suppression, reached={"b0": 0.0, "b1": 0.0}, distances=distances, seed=seed))
        kept = run_of((1 - suppression)[2:, 2:], distances={"casd": distances["casd"][2:, 2:]}, seed=seed)
        rhos.append(relate(kept.casd, kept.transfer, permutations=99, seed=0)["rho"][0])
        runs.append(run)
    few = related(run_of(1 - random_suppression(9, 0.4, 0.3), before=[1.0] * 3 + [0.0] * 5, distances=distances, seed=3))
    assert few.relation["n_backdoors"].tolist() == [3, 3]
    verdict = verdicts("casd_tells", *runs, few)["m", "o"]
    assert f"{3 * 15} pairs; in single runs {min(rhos):.2f} to {max(rhos):.2f}; excluded: " in verdict.statistic
    assert verdict.statistic.endswith("6 target ASR not reached, 5 backdoor not established of 32 removals")
    assert verdict.outcome == "holds"
    page = [run.relation.set_index("response").loc["suppression", "rho"] for run in runs]
    assert page == pytest.approx(rhos), "a run's own page says the same"


def _matrix(tables: RunTables, variant: str) -> np.ndarray:
    matrix = np.zeros((N, N))
    for a, b, distance in tables.casd.loc[tables.casd["variant"] == variant, ["a", "b", "distance"]].to_numpy():
        matrix[int(a[1:]), int(b[1:])] = matrix[int(b[1:]), int(a[1:])] = distance
    return matrix


def test_a_claim_on_every_family_fails_with_one() -> None:
    runs = [run_with(random_suppression(0, 0.4, 0.1), model="a"), run_with(random_suppression(1, 0.0, 0.02), model="b")]
    verdict = verdicts("others_weaken_everywhere", *runs)[POOLED, "o"]
    assert verdict.outcome == "does not hold"
    assert verdict.statistic == "a: holds; b: does not hold"


def test_clean_language_counts_collapsed_models() -> None:
    whole = run_with(random_suppression(0, 0.4, 0.1))
    whole.states["clean_loss_ratio"] = 1.01
    assert verdicts("language_kept", whole)["m", "o"].outcome == "holds"
    broken = run_with(random_suppression(0, 0.4, 0.1), collapsed=["b0", "b1"])
    broken.states["clean_loss_ratio"] = [1.01] * 9 + [1.0] * 2
    broken.states.loc[broken.states["collapsed"], "clean_loss_ratio"] = 3.0
    verdict = verdicts("language_kept", broken)["m", "o"]
    assert verdict.outcome == "not decided"
    assert "2 of 8 collapsed" in verdict.statistic
    broken.states.loc[broken.states["state"] == "b0", "clean_loss_ratio"] = math.nan
    verdict = verdicts("language_kept", broken)["m", "o"]
    assert verdict.outcome == "does not hold", "no mean can tell how much worse than all others this is"
    assert verdict.statistic.endswith("2 of 8 collapsed, 1 without a finite loss")
    broken.states["clean_loss_ratio"] = 2.0
    assert verdicts("language_kept", broken)["m", "o"].outcome == "does not hold"


def test_a_setting_that_removes_nothing_is_not_asked_for_transfer() -> None:
    good, idle = (
        run_with(random_suppression(seed, mean, 0.05), config=f"unlearning: {{learning_rate: {rate}}}")
        for seed, mean, rate in ((0, 0.4, 0.1), (1, 0.0, 0.0001))
    )
    own = idle.transfer["same"].astype(bool)
    idle.transfer.loc[own, "asr_after"] = 0.9
    found = verdicts("at_every_setting", good, idle)
    assert found["m", "o, learning_rate=0.0001"].statistic.startswith("removes nothing")
    assert found["m", "every setting"].outcome == "holds"
    assert verdicts("more_than_phantoms_at_every_setting", good, idle)["m", "every setting"].outcome == "holds"
    assert [each.objective for each in headline(list(found.values()))] == ["every setting"]


def test_settings_are_counted_once_and_none_is_called_idle_that_only_collapsed() -> None:
    runs = [
        run_with(random_suppression(seed, 0.4, 0.05), model=model, config=f"unlearning: {{learning_rate: {rate}}}")
        for seed, (model, rate) in enumerate((model, rate) for model in ("m", "n") for rate in (0.1, 0.2))
    ]
    found = verdicts("at_every_setting", *runs)
    assert found[POOLED, "every setting"].statistic == "holds at 4 of 4 settings that remove backdoors"
    names = [f"b{place}" for place in range(N)]
    lost = run_with(random_suppression(9, 0.4, 0.05), config="unlearning: {learning_rate: 0.5}", collapsed=names)
    assert verdicts("at_every_setting", runs[0], lost)["m", "o, learning_rate=0.5"].statistic == "no removal is included"


def test_the_headline_is_over_all_models_where_there_are_several() -> None:
    one = [Verdict("m", "o", "", "holds"), Verdict("m", "p", "", "holds")]
    assert list(headline(one)) == one
    pooled = Verdict(POOLED, "o", "", "holds")
    assert list(headline([*one, pooled])) == [pooled]


# ---------------------------------------------------------------- catalogue and scales


def test_every_exhibit_has_its_claims_its_runs_and_its_function() -> None:
    for name, exhibit in EXHIBITS.items():
        assert exhibit.run_set in RUN_SETS, name
        assert set(exhibit.claims) <= set(CLAIMS), name
    assert list(SHOWN) == list(EXHIBITS)
    assert {claim for exhibit in EXHIBITS.values() for claim in exhibit.claims} == set(CLAIMS)


@pytest.mark.parametrize("name", list(scales()))
def test_the_runs_of_every_scale_can_be_composed(name: str) -> None:
    scale = read_scale(name)
    for run_set, sweeps in scale.sweeps.items():
        for sweep in sweeps:
            for place in (0, -1):
                assert len(load_config(one_of(sweep, place)).backdoor) >= 3, run_set


def test_the_scales_are_what_they_are_called() -> None:
    assert list(scales()) == ["smoke", "tiny", "smollm2", "paper"]


def test_a_scale_of_one_s_own_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "reproduce"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine\nmain:\n  - [experiment=smoke]\n")
    monkeypatch.chdir(tmp_path)
    assert scales()["mine"] == "Mine"
    assert read_scale("mine").sweeps == {"main": (("experiment=smoke",),)}
    (folder / "mine.yaml").write_text("# Mine\nmain: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML: "):
        read_scale("mine")
    (tiny_main,) = read_scale("tiny").sweeps["main"]
    assert "model=qwen3_tiny,llama3_tiny,gaperon_tiny" in tiny_main
    (paper_main,) = read_scale("paper").sweeps["main"]
    assert "experiment=paper" in paper_main


def test_a_scale_that_does_not_say_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casd.reproduction.scales.config_folder", lambda: tmp_path)
    folder = tmp_path / "reproduce"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# Mine\nmain: [[seed=0]]\n")
    assert "summary" in read_scale("mine").exhibits and "learning_rate" not in read_scale("mine").exhibits
    (folder / "mine.yaml").write_text("# Mine\nlearning_rate: [[seed=0]]\n")
    with pytest.raises(ConfigError, match="needs the key main, and may have learning_rate, writing_system, factors"):
        read_scale("mine")
    (folder / "mine.yaml").write_text("# Mine\nmain: [seed=0]\nlearning_rate: [[seed=0]]\nwriting_system: [[seed=0]]\n")
    with pytest.raises(ConfigError, match=r"main is \['seed=0'\]; expected a list of sweeps"):
        read_scale("mine")
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        read_scale("mien")


# ---------------------------------------------------------------- the whole thing


@pytest.fixture(scope="module")
def reproduced(tiny_output: Path, tmp_path_factory: pytest.TempPathFactory, no_rendering: None) -> Path:
    """The output folder after `casd reproduce all` with the smallest runs there are in the place of those of "tiny"."""
    output = tmp_path_factory.mktemp("reproduced")
    shutil.copytree(tiny_output / "store", output / "store")  # it has one of the runs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casd.reproduction.scales.read_scale", lambda name: _smallest(output))
        main(["reproduce", "all"])
    return output


def _smallest(output: Path) -> Scale:
    base = (*tiny(output), "unlearning=clean_target")
    rates = "unlearning.training.learning_rate=6e-4,3e-4"  # the first is the experiment's own: no run twice
    backdoors = "backdoor=[french_a,french_b,german,refusal],[french_a,german,refusal]"  # likewise; too few tokens for Cyrillic
    sweeps = {
        "main": ((*base[:-1], "unlearning=clean_target,gradient_difference"),),
        "learning_rate": ((*base, rates),),
        "writing_system": ((*base, backdoors),),
    }
    return Scale("tiny", "the smallest", sweeps)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_exhibits_are_on_the_disk_and_in_the_page(reproduced: Path) -> None:
    folder = reproduced / "reproduce" / "tiny" / "all"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in _smallest(reproduced).exhibits:
        exhibit = EXHIBITS[name]
        assert f'<section id="{name}"' in page
        for suffix in ("md", "tex"):
            assert list((folder / "tables" / name).glob(f"*.{suffix}")), name
        for claim in exhibit.claims:
            assert CLAIMS[claim].text.replace("'", "&#39;") in page
    assert "numbers are nowhere available" in page
    assert "casd sweep experiment=smoke" in page
    links = re.findall(r'href="([^"#]+report\.html)"', page)
    assert links
    assert all((folder / link).is_file() for link in links)
    assert list((folder / "figures").rglob("*.pdf"))
    found = pd.read_csv(folder / "tables" / "verdicts.csv")
    assert set(found["claim"]) == set(CLAIMS)
    assert set(found["verdict"]) <= {"holds", "does not hold", "not decided"}


def test_again_nothing_is_made_and_one_lost_stage_is_made_alone(
    reproduced: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("casd.reproduction.scales.read_scale", lambda name: _smallest(reproduced))
    folder, store = reproduced / "reproduce", reproduced / "store"
    before, page = _files(folder), folder / "tiny" / "all" / "report.html"
    written = page.stat().st_mtime_ns
    main(["reproduce", "all"])
    assert "0 stages executed" in capfd.readouterr().err
    assert page.stat().st_mtime_ns == written

    lost = sorted((store / "evaluate").glob("[!.]*"))[0]
    shutil.rmtree(lost)
    main(["reproduce", "all"])
    assert "1 stages executed" in capfd.readouterr().err
    assert lost.is_dir()
    after = _files(folder)
    tables = [name for name in before if "/tables/" in name and name.rsplit(".", 1)[1] in ("md", "tex", "csv", "parquet")]
    assert len(tables) > 20
    assert [name for name in tables if before[name] != after[name]] == []


def test_what_is_reproduced_can_be_published(reproduced: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second folder has the verdicts and the tables over all runs as CSV, and a page that is made of them."""
    monkeypatch.setattr("casd.reproduction.scales.read_scale", lambda name: _smallest(reproduced))
    main(["reproduce", "all", "--publish", str(tmp_path)])
    stored = tmp_path / "results" / "reproduce-tiny-all"
    names = {path.stem for path in stored.glob("*.csv")}
    assert {"verdicts", "controls-objectives", "learning_rate-objectives", "utility-clean_language"} <= names
    assert not [name for name in names if "smoke" in name], "no table of a single run"
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert section_text(stored) in page
    assert "$ casd reproduce all scale=tiny" in page
    # The first number of a table of the exhibit is that of the report's own file.
    first = pd.read_csv(stored / "utility-clean_language.csv", dtype=str).iloc[0]
    assert first["clean loss"] in (reproduced / "reproduce/tiny/all/tables/utility/clean_language.md").read_text()


def test_a_scale_without_the_runs_of_an_exhibit_says_which_it_has(
    reproduced: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("casd.reproduction.scales.read_scale", lambda name: _smallest(reproduced))
    with pytest.raises(SystemExit):
        main(["reproduce", "factors"])
    assert "scale=tiny has no runs for factors; it has those for asr_matrices, " in capfd.readouterr().err


def test_one_exhibit_takes_its_own_runs_alone(
    reproduced: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("casd.reproduction.scales.read_scale", lambda name: _smallest(reproduced))
    main(["reproduce", "writing_system", "runtime.progress=off"])
    folder = reproduced / "reproduce" / "tiny" / "writing_system"
    assert sorted(each.name for each in (folder / "tables").iterdir() if each.is_dir()) == ["writing_system"]
    assert "every setting" in capfd.readouterr().out
