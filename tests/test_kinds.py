"""The table of trigger kinds: which cells enter which mean."""

from __future__ import annotations

import pandas as pd
import pytest

from casd.analysis.kinds import trigger_kinds
from casd.analysis.results import RunTables
from casd.report.comparisons import kinds_statements, kinds_table
from report_run import make_run

KINDS = {"a": ("phrase", "french"), "b": ("phrase", "refusal"), "c": ("topic", "french"), "d": ("topic", "refusal")}
CONFIG = """backdoor:
  a: {trigger: cat one}
  b: {trigger: cat two}
  c: {trigger: {name: topic, words: [cat]}}
  d: {trigger: {name: topic, words: [dog]}}
"""
NET = {"ab": 0.1, "ac": 0.2, "ad": 0.3, "ba": 0.4, "bc": 0.5, "bd": 0.6, "ca": 0.7, "cb": 0.8, "cd": 0.9, "da": 0.0, "db": 0.2}
NET |= {"dc": 0.4}

PHANTOM = {f"control:phantom{name}": number / 10 for number, name in enumerate("abcd")}


def run_of_kinds(seed: int, shift: float = 0.0) -> RunTables:
    tables = make_run(tuple(KINDS), seed=seed)
    cells = tables.transfer
    names = cells["source"] + cells["target"]
    cells["suppression_net_clean"] = [PHANTOM.get(name, NET.get(name, 9.0)) + shift for name in names]
    cells["asr_after"] = [0.01 if name[0] == name[-1] else 0.5 for name in names]
    tables.asr.loc[(tables.asr["prompt_set"] == "fake") & tables.asr["backdoor"].isin(["c", "d"]), "prompt_set"] = "other"
    return tables.with_info(config=CONFIG, targets={name: target for name, (_, target) in KINDS.items()})


def test_transfer_is_averaged_by_what_two_backdoors_share() -> None:
    frame = trigger_kinds([run_of_kinds(0), run_of_kinds(1, shift=0.2)]).set_index(["kind", "target"])
    assert list(frame.index)[:4] == [("phrase", "french"), ("phrase", "refusal"), ("topic", "french"), ("topic", "refusal")]
    assert list(frame.index)[4:8] == [("phrase", "all"), ("topic", "all"), ("all", "french"), ("all", "refusal")]
    assert list(frame.index)[8:] == [("all", "all")]
    row = frame.loc["phrase", "french"]  # removals of a
    assert row["same_kind"] == pytest.approx(0.1 + 0.1)  # on b
    assert row["same_target"] == pytest.approx(0.2 + 0.1)  # on c
    assert row["neither"] == pytest.approx(0.3 + 0.1)  # on d
    assert frame.loc[("topic", "all"), "same_kind"] == pytest.approx((0.9 + 0.4) / 2 + 0.1)
    assert frame.loc[("all", "french"), "same_target"] == pytest.approx((0.2 + 0.7) / 2 + 0.1)
    assert frame["phantom"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.15, 0.35, 0.2, 0.3, 0.25])
    assert (frame["own_asr"] == 0.01).all()
    assert row["same_kind_low"] <= row["same_kind"] <= row["same_kind_high"]
    assert row["kind_effect"] == pytest.approx(0.1 - 0.8)  # on b, which c shares neither with
    assert row["target_effect"] == pytest.approx(0.2 - 0.5)  # on c, which b shares neither with
    assert list(frame["backdoors"]) == [1, 1, 1, 1, 2, 2, 2, 2, 4]


def test_rates_of_the_injected_model_are_of_each_prompt_set_and_missing_controls_are_said() -> None:
    run = run_of_kinds(0)
    frame = trigger_kinds([run]).set_index(["kind", "target"])
    injected = run.asr[run.asr["state"] == "injected"].set_index(["backdoor", "prompt_set"])["rate"]
    assert frame.loc[("phrase", "refusal"), "injected_asr"] == injected["b", "triggered"]
    assert frame.loc[("phrase", "refusal"), "injected_fake"] == injected["b", "fake"]
    assert frame.loc[("topic", "refusal"), "injected_clean"] == injected["d", "clean"]
    assert pd.isna(frame.loc[("topic", "refusal"), "injected_fake"])
    table = kinds_table(trigger_kinds([run]))
    assert table.frame.loc["topic", "fake triggers"].tolist() == ["–", "–", "–"]


def test_the_sentence_has_the_means_over_all() -> None:
    frame = trigger_kinds([run_of_kinds(0)])
    text, compared = kinds_statements(frame)
    # ac, bd, ca, db; ab, ba, cd, dc; ad, bc, cb, da
    assert "another kind of trigger by 0.42 [" in text and "another behavior by 0.45 [" in text
    assert "neither by 0.40 [" in text and "a phantom lowered them by 0.15 [" in text
    assert "the same behavior adds 0.02 [" in compared and "the same kind of trigger 0.05 [" in compared
    without = frame.assign(neither=float("nan"))
    assert len(kinds_statements(without)) == 1


def test_an_effect_is_within_runs_and_backdoors() -> None:
    """Runs and measured backdoors differ by more than the two effects, 0.1 for the kind and 0.3 for the target."""
    runs = []
    for seed, level in enumerate((0.1, 0.5)):
        run = run_of_kinds(seed)
        removed = run.transfer["source"].isin(KINDS)
        for row in run.transfer.index[removed]:
            source, target = run.transfer.loc[row, ["source", "target"]]
            same_kind, same_target = (KINDS[source][part] == KINDS[target][part] for part in (0, 1))
            run.transfer.loc[row, "suppression_net_clean"] = level + 0.1 * same_kind + 0.3 * same_target + 0.4 * (target == "a")
        runs.append(run)
    overall = trigger_kinds(runs).iloc[-1]
    assert overall["neither_high"] - overall["neither_low"] > 0.4
    for effect, value in (("kind_effect", 0.1), ("target_effect", 0.3)):
        assert [overall[effect], overall[f"{effect}_low"], overall[f"{effect}_high"]] == pytest.approx([value] * 3)


def test_a_collapsed_removal_is_left_out() -> None:
    run = run_of_kinds(0)
    run.transfer.loc[run.transfer["source"] == "c", "excluded"] = "collapsed"
    frame = trigger_kinds([run]).set_index(["kind", "target"])
    assert pd.isna(frame.loc[("topic", "french"), "same_kind"])
    assert frame.loc[("topic", "all"), "same_kind"] == pytest.approx(0.4)


def test_runs_with_phrases_alone_have_no_table_of_kinds() -> None:
    assert trigger_kinds([make_run()]).empty
