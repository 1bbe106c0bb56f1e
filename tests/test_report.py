"""Reports: tables survive the disk, text from models stays text, cells show the tables' numbers, and nothing cut looks whole.

Run: pytest tests/test_report.py
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from casd.analysis.collection import asr_matrix, distance_matrix, summary
from casd.analysis.comparison import MEASURES
from casd.analysis.results import RunTables
from casd.analysis.tables import SCHEMAS
from casd.report import collect, print_run, print_sweep, print_tables, read_runs, write_report, write_sweep_report
from casd.report.comparisons import objectives_table
from casd.report.drawing import cell_colors, save
from casd.report.figures import NOISE_FLOOR, casd_by_layer, relation_scatter
from casd.report.files import to_latex, to_markdown
from casd.report.gallery import draw, run_drawings
from casd.report.heatmaps import asr_heatmap, asr_heatmaps, casd_heatmaps
from casd.report.html import run_html
from casd.report.markup import Table, numeric_columns, table_of
from casd.report.matrices import asr_table, casd_table, mean_asr_table, suppression_table
from casd.report.page import visible
from casd.report.statements import statements
from casd.report.tables import asr_long_table, relation_table, run_tables, states_table, utility_table
from casd.report.wording import NO_PAIRS, decimals_for, fraction, mean_with_interval, p_text, perplexity, significant
from casd.utils.errors import CasdError
from report_run import CONTROLS, EIGHT, HOSTILE, compared, make_run, make_scatter


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes, and whether every element is closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def numbers_in(figure: object, panel: int) -> list[str]:
    """The texts printed inside the cells of a heatmap."""
    return [text.get_text() for text in figure.axes[panel].texts]  # type: ignore[attr-defined]


def printed(call: object, *args: object, width: int = 100) -> str:
    stream = io.StringIO()
    call(*args, Console(file=stream, width=width, highlight=False))  # type: ignore[operator]
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ tables on disk


def test_tables_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    tables = make_run(generated=HOSTILE, relation=False)
    tables.write(tmp_path)
    again = RunTables.read(tmp_path)
    assert again.info == tables.info
    for name in SCHEMAS:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(tables, name), check_dtype=len(getattr(tables, name)) > 0)
    csv = pd.read_csv(tmp_path / "tables" / "asr.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(csv, tables.asr, check_dtype=False, rtol=0, atol=0)
    assert pd.read_csv(tmp_path / "tables" / "samples.csv", dtype=str)["generated"].iloc[0].startswith("</td>")


def test_the_grid_is_in_parquet_alone_and_can_be_left_there(tmp_path: Path) -> None:
    tables = make_run(("a", "b", "c"))
    named = tables.casd
    grid = [named.assign(variant=f"grid/{i}", grid=True) for i in range(1000)]  # more than one row group
    tables.casd = pd.concat([named, *grid], ignore_index=True)
    tables.write(tmp_path)
    csv = pd.read_csv(tmp_path / "tables" / "casd.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(csv, named, check_dtype=False, rtol=0, atol=0)
    pd.testing.assert_frame_equal(RunTables.read(tmp_path).casd, tables.casd)
    without = RunTables.read(tmp_path, grid=False)
    pd.testing.assert_frame_equal(without.casd, named)
    assert without.lacks_grid
    pd.testing.assert_frame_equal(without.every_variant(), tables.casd)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tables: (tables / "baselines.parquet").unlink(), "older version of casd: it has no table 'baselines'"),
        (
            lambda tables: make_run().asr.drop(columns=["n", "prompt_set"]).to_parquet(tables / "asr.parquet"),
            "older version of casd: its table 'asr' lacks n, prompt_set",
        ),
        (lambda tables: (tables / "info.json").unlink(), "its tables are not complete"),
        (lambda tables: (tables / "info.json").rename(tables / "sweep.json"), "it is the report of several runs"),
        (lambda tables: (tables / "info.json").write_text("{"), r"info\.json cannot be read"),
        (lambda tables: (tables / "info.json").write_text('{"model": "m"}'), "lacks objective, seed"),
        (lambda tables: (tables / "info.json").write_text("[]"), "lacks model, objective, seed"),
    ],
)
def test_what_is_no_finished_run_of_this_version_says_why(change: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    make_run().write(tmp_path)
    change(tmp_path / "tables")
    with pytest.raises(CasdError, match=says) as error:
        RunTables.read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert re.search(r"[Rr]un its command again|[Mm]ake the run's report again", str(error.value))


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'asr' lacks the columns \['backdoor'\]"):
        dataclasses.replace(make_run(), asr=make_run().asr.drop(columns="backdoor"))


def test_an_unfinished_or_damaged_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CasdError, match="nowhere is not the folder of a finished run"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(CasdError, match="no run to collect"):
        collect([])
    make_run().write(tmp_path / "run")
    damaged = tmp_path / "run" / "tables" / "asr.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CasdError, match=r"asr\.parquet cannot be read"):
        RunTables.read(tmp_path / "run")


def test_writing_that_fails_leaves_no_finished_run(tmp_path: Path) -> None:
    tables = make_run()
    tables.write(tmp_path)
    (tmp_path / "tables" / "casd.parquet").unlink()
    (tmp_path / "tables" / "casd.parquet").mkdir()  # what cannot be written over
    with pytest.raises(CasdError, match=r"Cannot write a set of tables to .*: Is a directory"):
        tables.write(tmp_path)
    with pytest.raises(CasdError, match="not the folder of a finished run"):
        RunTables.read(tmp_path)


def test_collected_runs_are_ordered_and_told_apart(tmp_path: Path) -> None:
    make_run(seed=10).write(tmp_path / "x" / "0")
    make_run(seed=2, relation=False).write(tmp_path / "y" / "0")
    make_run(objective="gradient_difference").write(tmp_path / "b")
    folders = [tmp_path / "b", tmp_path / "x" / "0", tmp_path / "y" / "0", tmp_path / "b"]
    combined = collect(folders)
    assert list(dict.fromkeys(combined.asr["run"])) == ["y/0", "x/0", "b"]
    for name in SCHEMAS:
        assert list(getattr(combined, name).columns[:4]) == ["run", "model", "objective", "seed"]
    assert combined.asr["rate"].dtype == float
    assert set(combined.relation["run"]) == {"x/0", "b"}
    pd.testing.assert_frame_equal(collect(reversed(folders)).asr, combined.asr)


# ------------------------------------------------------------------------------------------------ numbers


def test_summary_is_the_mean_of_the_cells_it_names() -> None:
    tables = make_run(collapsed=("german",))
    triggered = tables.asr[(tables.asr["prompt_set"] == "triggered") & (tables.asr["state"] != "german")]
    removals = triggered[triggered["state"].isin(EIGHT)]
    row = summary([tables]).iloc[0]
    assert row["own_asr"] == pytest.approx(1 / 64)
    assert row["others_asr"] == pytest.approx(removals.loc[removals["state"] != removals["backdoor"], "rate"].mean())
    assert row["clean_asr"] == pytest.approx(triggered.loc[triggered["state"] == "control:clean", "rate"].mean())
    assert row["phantom_asr"] == pytest.approx(triggered.loc[triggered["state"] == "control:phantom", "rate"].mean())
    assert row["clean_loss_change"] == pytest.approx(0.01)
    assert (row["removals"], row["collapsed"]) == (8, 1)
    assert (row["rho:casd:suppression"], row["p:casd:suppression"]) == (-0.62, 0.004)


def test_a_collapsed_control_says_nothing() -> None:
    tables = make_run(collapsed=("control:clean",))
    assert math.isnan(summary([tables]).iloc[0]["clean_asr"])
    assert any("Control clean: collapsed" in text for text in statements(tables))


def test_excluded_removals_are_named_with_their_reason() -> None:
    tables = make_run()
    excluded = {
        "german": "backdoor not established",
        "refusal": "target ASR not reached",
        "fixed_text": "target ASR not reached",
    }
    tables.states["excluded"] = tables.states["state"].map(excluded).fillna("")
    texts = statements(tables)
    start = "removals {} excluded from every mean and correlation,"
    assert f"1 of 8 {start.format('is')} backdoor not established: german." in texts
    assert f"2 of 8 {start.format('are')} target ASR not reached: fixed_text, refusal." in texts
    assert any(text.startswith("5 of 5 included removals left") for text in texts)


def test_the_mean_of_pairs_by_layer_is_of_included_removals_and_the_floor_of_their_repeats() -> None:
    tables = make_run(("a", "b", "c", "d"), collapsed=("d",))
    repeats = [("control:repeat:a", 0.5), ("control:repeat:b", 9.0)]
    tables.states = pd.concat([tables.states, pd.DataFrame([{"state": name, "kind": "control"} for name, _ in repeats])])
    tables.states["excluded"] = tables.states["state"].map({"d": "collapsed", "control:repeat:b": "no training step kept"})
    tables.states = tables.states.fillna({"excluded": "", "collapsed": False})
    more = [("casd", name[-1], name, layer, d) for name, d in repeats for layer in range(4)]
    more += [("casd", "a", "control:clean", layer, 7.0) for layer in range(4)]
    layers = pd.concat([tables.casd_layers, pd.DataFrame(more, columns=tables.casd_layers.columns)], ignore_index=True)
    figure = casd_by_layer(dataclasses.replace(tables, casd_layers=layers))
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    kept = tables.casd_layers[~tables.casd_layers[["a", "b"]].eq("d").any(axis=1)]
    expected = kept[kept["variant"] == "casd"].groupby("layer_idx")["distance"].mean()
    np.testing.assert_allclose(lines["mean of pairs"], expected)
    np.testing.assert_allclose(lines[NOISE_FLOOR], 0.5)
    assert "seed" not in NOISE_FLOOR, "it is one seed with other documents"


def test_casd_matrix_is_symmetric_with_the_tables_distances() -> None:
    tables = make_run()
    matrix = distance_matrix(tables, "casd")
    assert list(matrix.index) == list(EIGHT)
    np.testing.assert_array_equal(matrix, matrix.T)
    for row in tables.casd[tables.casd["variant"] == "casd"].itertuples():
        assert matrix.loc[row.b, row.a] == row.distance


def test_numbers_in_words() -> None:
    assert [fraction(x) for x in (0.956, math.nan, None, -0.001, -0.125)] == ["0.96", "–", "–", "0.00", "-0.12"]
    assert [p_text(x) for x in (0.0001, 0.004, 0.41, math.nan)] == ["<0.001", "0.004", "0.41", "–"]
    # As many decimals as show on which side of 0.05 a p-value is, and a limit of zero.
    assert [p_text(x) for x in (0.0496, 0.05, 0.0536, 0.0502, 0.0549)] == ["0.05", "0.05", "0.054", "0.0502", "0.055"]
    record = {"x": 0.1, "x_low": -0.0041, "x_high": 0.2}
    assert mean_with_interval(record, "x") == "0.10 [-0.004, 0.20]"
    assert mean_with_interval(record | {"x_low": 0.0004}, "x") == "0.10 [0.0004, 0.20]"
    assert mean_with_interval(record | {"x_low": 0.0}, "x") == "0.10 [0.00, 0.20]"
    assert [significant(x) for x in (0.83249, 0.0, 1.2e-5, 1234.5, math.nan)] == ["0.832", "0", "1.2e-05", "1.23e+03", "–"]
    assert [decimals_for(x) for x in (12.0, 0.5, 0.034, 0.0, math.nan)] == [2, 2, 3, 2, 2]


# ------------------------------------------------------------------------------------------------ tables to read


def test_asr_table_shows_every_cell_and_marks_the_collapsed_row() -> None:
    tables = make_run(collapsed=("german",))
    table = asr_table(tables)
    assert [name for name, _ in table.grouped()] == ["", "removals", "controls"]
    matrix = asr_matrix(tables)
    for row, (state, texts) in enumerate(table.frame.iterrows()):
        for column, (backdoor, text) in enumerate(texts.items()):
            number = f"{matrix.loc[state, backdoor]:.2f}"
            if state == "german":
                assert (text, table.shade_of(row, column), table.is_bold(row, column)) == (f"({number})", None, False)
            else:
                assert text == number
                assert table.is_bold(row, column) == (state == backdoor)
    assert [label for label in table.labels if "collapsed" in label] == ["german (collapsed)"]
    for part in ("llama3_tiny", "clean_target", "seed 0", "n = 64"):
        assert part in table.caption


def test_long_table_has_the_intervals() -> None:
    table = asr_long_table(make_run(("a", "b", "c")))
    assert len(table) == 6 * 3
    [own] = table.frame.loc["a"].query("measured == 'a'").to_dict("records")
    assert list(own.values())[1:4] == ["0.02", "0.00 to 0.08", "1/64"]


@pytest.mark.parametrize(("n", "rate", "text"), [(8, 0.125, "0.1"), (32, 0.03125, "0.03"), (2000, 0.0625, "0.062")])
def test_rates_have_the_decimals_that_their_prompts_allow(n: int, rate: float, text: str) -> None:
    tables = make_run(("a", "b", "c"))
    tables.asr[["n", "rate", "rate_low", "rate_high"]] = n, rate, rate, rate
    assert set(asr_table(tables).frame.to_numpy().ravel()) == {text}
    long = asr_long_table(tables).frame
    assert set(long["ASR"]) == {text}
    assert set(long["95 % interval"]) == {f"{text} to {text}"}
    assert set(numbers_in(asr_heatmap(tables), 0)) == {text}


def test_means_over_runs_are_those_of_the_cells_and_leave_collapsed_models_out() -> None:
    runs = [make_run(seed=seed, collapsed=("german",) if seed == 2 else ()) for seed in range(3)]
    runs += [make_run(objective="npo", collapsed=("german",))]
    table = mean_asr_table(runs)
    assert [name for name, _ in table.grouped()] == ["clean_target, llama3_tiny, 3 runs", "npo, llama3_tiny, 1 run"]
    matrices = [asr_matrix(tables) for tables in runs]
    matrices[2].loc["german"] = math.nan
    expected = sum(matrix.fillna(0.0) for matrix in matrices[:3]) / sum(matrix.notna() for matrix in matrices[:3])
    several = table.frame.iloc[: len(expected)]
    assert list(several.index) == ["injected", *EIGHT[:2], "german, 2 of 3 runs", *EIGHT[3:], *CONTROLS]
    assert several.to_numpy().tolist() == expected.map("{:.2f}".format).to_numpy().tolist()
    assert table.bold is not None
    assert table.bold[: len(expected)].tolist() == [[state == name for name in EIGHT] for state in expected.index]
    assert set(table.frame.loc["german, 0 of 1 runs"]) == {"–"}


def test_only_an_interval_excluding_zero_is_bold_and_a_control_is_no_objective() -> None:
    frame = pd.DataFrame(
        [
            {
                "model": model,
                "objective": objective,
                "seeds": 1,
                "included": 8,
                "removals": 8,
                "reached": math.nan,
                "excluded": "",
            }
            | {"own_asr": 0.0}
            | dict.fromkeys(("runs", *(f"{measure}_runs" for measure in MEASURES)), 1)
            | dict.fromkeys(("suppression", "suppression_net_clean", "clean_control", "phantom_control"), 0.1)
            | {f"{name}_{end}": math.nan for name in ("suppression", "suppression_net_clean") for end in ("low", "high")}
            | {
                "suppression_net_phantom": net,
                "suppression_net_phantom_low": net - 0.25,
                "suppression_net_phantom_high": net + 0.25,
                "minus_reference": math.nan,
                "minus_reference_runs": 0,
                "clean_loss_change": 0.0,
                "steps": 4.0,
                "seconds": 1.0,
            }
            for model, objective, net in (
                *(("m", "npo", 0.1), ("m", "rmu", 0.3), ("m", "retain_only", 0.2)),
                *(("n", "npo", math.nan), ("n", "retain_only, steps=8", 0.2), ("all", "npo", -0.3), ("all", "rmu", 0.2)),
            )
        ]
    )
    table = objectives_table(frame)
    assert table.bold is not None
    marked = {(table.groups[row], table.frame.index[row], table.columns[place]) for row, place in np.argwhere(table.bold)}
    assert marked == {("m", "rmu", "net of phantom"), ("all models", "npo", "net of phantom")}
    assert list(table.frame.index[2:5]) == ["retain_only (control)", "npo", "retain_only, steps=8 (control)"]
    assert r"\textbf{0.30 [0.05, 0.55]}" in to_latex(table)
    assert r"**0.30 \[0.05, 0.55\]**" in to_markdown(table) and r"**-0.30 \[-0.55, -0.05\]**" in to_markdown(table)


def test_statements_claim_no_more_than_the_numbers() -> None:
    texts = "\n".join(statements(make_run(collapsed=("german",))))
    assert "7 of 7 included removals left their own backdoor an ASR of at most 0.05 (mean own ASR 0.02)" in texts
    assert "1 of 8 removals is excluded from every mean and correlation, collapsed: german." in texts
    assert "CASD predicted which among these backdoors, perhaps not among others (ρ -0.62 [" in texts
    assert "CASD could not be tested as a predictor." in "\n".join(statements(make_run(relation=False)))


def test_missing_values_are_dashes() -> None:
    tables = make_run(("a", "b", "c"), collapsed=("b",))
    tables.asr = tables.asr[~((tables.asr["state"].isin(["a", "b"])) & (tables.asr["backdoor"] == "c"))]
    table = asr_table(tables)
    assert list(table.frame["c"].iloc[1:3]) == ["–", "–"]
    assert [table.shade_of(row, 2) for row in (1, 2)] == [None, None]
    assert all(numeric_columns(asr_table(tables)))
    assert list(relation_table([tables]).frame.iloc[2][["ρ", "p"]]) == ["–", "–"]


def test_numbers_that_are_missing_everywhere_are_dashes_everywhere() -> None:
    """Controls that did not run, and measurements that gave nothing: no table, sentence or page says "nan"."""
    tables = make_run(("a", "b", "c"), relation=False)
    for name in ("states", "asr", "transfer", "casd", "casd_layers", "specificity"):
        frame = getattr(tables, name).copy()
        kept = ("successes", "n", "steps", "layer_idx", "n_removals")
        numbers = [column for column in frame.select_dtypes("number").columns if column not in kept]
        frame[numbers] = math.nan
        setattr(tables, name, frame)
    shown = [to_markdown(table) + to_latex(table) for table in run_tables(tables)]
    shown += [printed(print_run, tables), printed(print_sweep, [tables], compared([tables])), *statements(tables)]
    shown.append(Page(run_html(tables, {})).text)
    assert list(run_drawings(tables, make_scatter(tables))), "figures can be made"
    for text in shown:
        assert not re.search(r"\b(nan|NaN|None)\b|\(–\)", text), text


def with_benchmarks(tables: RunTables) -> RunTables:
    """The run with two benchmark tasks on every state."""
    rows = [
        (state, task, metric, value, math.nan if metric == "acc" else 0.012, 500)
        for state in tables.states["state"]
        for task, metric, value in (("quiz", "acc", 0.25), ("quiz", "acc_norm", 0.3125), ("recall", "f1", 0.5))
    ]
    tables.utility = pd.DataFrame(rows, columns=list(SCHEMAS["utility"]))
    tables.states["utility/quiz"], tables.states["utility/recall"] = 0.3125, 0.5
    return tables


def test_every_state_has_its_perplexities_beside_each_other() -> None:
    tables = make_run(("a", "b", "c"))
    tables.states.loc[0, ["clean_loss", "retain_loss"]] = 800.0, math.nan
    table = states_table(tables)
    columns = ["perplexity", "perplexity, retain", "clean loss"]
    assert list(table.frame.loc["injected", columns]) == ["inf", "–", "800.00"]
    assert list(table.frame.loc["control:clean", columns]) == ["12.18", "1.65", "2.50"]
    assert [perplexity(loss) for loss in (0.0, 4.7, 9.0, None)] == ["1.00", "110", "8.1e+03", "–"]
    assert re.search(r"^ ?control:clean +12\.18 +1\.65 *$", printed(partial(print_run, verbose=True), tables), re.MULTILINE)
    assert "utility" not in [table.name for table in run_tables(tables)]


def test_benchmarks_are_shown_where_there_are_some(tmp_path: Path) -> None:
    tables = with_benchmarks(make_run(("a", "b", "c"), collapsed=("b",)))
    table = utility_table(tables)
    assert len(table) == 6 * 3
    assert list(table.frame.iloc[0]) == ["quiz", "acc", "0.250", "–", "500"]
    assert list(table.frame.iloc[1]) == ["quiz", "acc_norm", "0.312", "0.012", "500"]
    shown = states_table(tables)
    assert list(shown.frame["quiz"]) == ["0.312"] * 6
    assert "main metric of quiz, recall" in shown.caption
    text = printed(partial(print_run, verbose=True), tables)
    assert re.search(r"^ ?control:clean +12\.18 +1\.65 +0\.312 +0\.500 *$", text, re.MULTILINE)
    assert "Tasks and metrics of lm-evaluation-harness" in Page(run_html(tables, {})).text
    assert "utility" in [table.name for table in run_tables(tables)]
    tables.write(tmp_path)
    pd.testing.assert_frame_equal(RunTables.read(tmp_path).utility, tables.utility)


def test_states_table_has_the_gradient_of_the_forget_term() -> None:
    table = states_table(make_run(("a", "b", "c")))
    gradients = ["gradient, first", "gradient, last"]
    assert list(table.frame.loc["injected", gradients]) == ["–", "–"]
    assert list(table.frame.loc["control:phantom", gradients]) == ["0.832", "1.2e-05"]
    assert all(numeric_columns(table)[table.columns.index(name)] for name in gradients), "exponents are numbers"


def test_a_phantom_whose_like_activate_a_backdoor_is_said_to_be_no_control() -> None:
    tables = make_run()
    assert not any("no control of the others" in text for text in statements(tables))
    removed = min(tables.states_of("removal"))
    chosen = (tables.asr["state"] == "injected") & (tables.asr["backdoor"] == removed) & (tables.asr["prompt_set"] == "fake")
    assert chosen.sum() == 1
    tables.asr.loc[chosen, "rate"] = 0.75
    [said] = [text for text in statements(tables) if "no control of the others" in text]
    assert f"activated {removed} in 0.75 of the prompts of the injected model" in said


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0.83, 0.5, "not zero, so this control could move the model (L2 norm before clipping, of the forget term alone: 0.83"),
        (0.0, 0.0, "was zero at the first and the last step (L2 norm before clipping, of the forget term alone: 0 at the"),
        (0.83, 0.0, "was zero at the last step"),
        (math.nan, math.nan, "is not known: the objective has no such term"),
    ],
)
def test_the_phantoms_gradient_is_stated(first: float, last: float, expected: str) -> None:
    tables = make_run(("a", "b", "c"))
    phantom = tables.states["state"] == "control:phantom"
    tables.states.loc[phantom, ["forget_gradient_first", "forget_gradient_last"]] = first, last
    found = [text for text in statements(tables) if text.startswith("Control phantom: the gradient of its forget term")]
    assert len(found) == 1
    assert expected in found[0]


def test_a_phantom_that_broke_at_once_has_no_gradient() -> None:
    tables = make_run(("a", "b", "c"))
    tables.states.loc[tables.states["state"] == "control:phantom", ["forget_gradient_first", "forget_gradient_last"]] = math.nan
    tables.curves.loc[tables.curves["state"] == "control:phantom", "loss"] = math.nan
    assert any("is not known: no training step was finished" in text for text in statements(tables))


def test_a_single_backdoor_has_no_pairs_and_the_report_says_so() -> None:
    tables = make_run(("a",))
    texts = statements(tables)
    assert NO_PAIRS in texts
    assert "The one removal left its own backdoor an ASR of 0.02." in texts
    assert not any("other backdoors" in text or "–" in text for text in texts)
    assert NO_PAIRS in asr_table(tables).caption
    assert NO_PAIRS in " ".join(printed(print_run, tables).split())
    page = Page(run_html(tables, {}))
    assert page.open == []
    assert page.text.count(NO_PAIRS) >= 2
    assert NO_PAIRS not in asr_table(make_run(("a", "b"))).caption


def test_suppression_table_is_what_was_removed_by_what_was_measured() -> None:
    tables = make_run(("a", "b", "c"))
    table = suppression_table(tables, "suppression_net_clean")
    assert list(table.frame.index) == ["a", "b", "c", *CONTROLS]
    for record in tables.transfer.to_dict("records"):
        assert table.frame.loc[record["source"], record["target"]] == fraction(record["suppression_net_clean"])


HARD_NAMES = Table(
    name="hard names",
    title="50% & more_of {it}",
    caption=r"\input{x} $x$ ~^# <b>",
    frame=pd.DataFrame(
        {"[x]_y": ["[0.1", "p<0.001"], "n": ["-0.50", "–"]}, index=pd.Index(["*a_1*", "[b]\nc"], name="a|b"), dtype=object
    ),
    bold=np.array([[False, True], [False, False]]),
)


def test_latex_is_escaped_and_balanced() -> None:
    several = [make_run(objective=objective, seed=seed) for objective in ("npo", "a_b, lr=1 & 2") for seed in (0, 1)]
    for tables in several:
        tables.baselines = tables.casd[["a", "b", "distance"]].assign(predictor="weights_l2")[:28]
    over_runs = compared(several).tables
    assert [table.name for table in over_runs] == ["objectives", "predictors", "pair_shares"]
    for table in (HARD_NAMES, *run_tables(make_run(collapsed=("german",))), *over_runs, mean_asr_table(several)):
        text = to_latex(table)
        assert table is HARD_NAMES or text.isascii(), "a letter that pdflatex may not have"
        assert "\\caption{" in text
        body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        bare = re.sub(r"\\[\\{}$&#_%]", "", body)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[#%_~^|<>](?!\$)", bare.replace("$<$", "").replace("$>$", "")), bare
        begun, ended = re.findall(r"\\begin\{(\w+)\}", body), re.findall(r"\\end\{(\w+)\}", body)
        assert begun == ended[::-1]
        shown = 0
        for part in re.split(r"\\end\{(?:tabular|longtable)\}", body)[:-1]:
            rows = re.findall(r"^(.*) \\\\$", part, re.MULTILINE)
            rows = [row for row in rows if not row.startswith(("\\label", "\\caption", "\\multicolumn"))]
            assert not any(row.startswith(("[", "*")) for row in rows)
            [columns] = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
            assert len(rows) == 1 + len(table)
            shown += columns - table.keys
        assert shown + table.keys == len(table.columns)
    text = to_latex(HARD_NAMES)
    assert r"\textbackslash{}input\{x\} \$x\$ \textasciitilde{}\textasciicircum{}\# $<$b$>$" in text
    assert r"\textbf{$-$0.50}" in text
    assert r"50\% \& more\_of \{it\}" in text


def test_markdown_cells_stay_cells() -> None:
    text = to_markdown(HARD_NAMES)
    lines = text.strip().splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert r"\*a_1\*" in text
    assert r"\<b>" in text
    assert "**-0.50**" in text


# ------------------------------------------------------------------------------------------------ figures


def test_heatmap_cells_are_the_tables_numbers() -> None:
    tables = make_run(collapsed=("german",))
    matrix = asr_matrix(tables)
    expected = [
        f"({value:.2f})" if state == "german" else f"{value:.2f}" for state in matrix.index for value in matrix.loc[state]
    ]
    figure = asr_heatmap(tables)
    assert numbers_in(figure, 0) == expected
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][3] == "german (collapsed)"
    assert numbers_in(asr_heatmaps([make_run(seed=5), tables]), 1) == expected


def test_casd_heatmap_leaves_the_diagonal_out() -> None:
    tables = make_run(("a", "b", "c"))
    matrix = distance_matrix(tables, "casd")
    expected = [f"{matrix.loc[a, b]:.3f}" if a != b else "–" for a in "abc" for b in "abc"]
    assert numbers_in(casd_heatmaps(tables), 0) == expected
    assert list(casd_table(tables, "casd").frame.to_numpy().ravel()) == expected


def test_scatter_has_every_pair_and_the_tables_correlation() -> None:
    tables = make_run()
    figure = relation_scatter(make_scatter(tables), tables)
    axes = figure.axes[0]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 28
    assert axes.get_title() == "casd: ρ = -0.62, p = 0.004 (Mantel)"
    assert figure.axes[1].get_title() == "casd_cos: no test"


def test_figures_have_the_same_bytes_each_time_and_no_mathematics_in_names(tmp_path: Path) -> None:
    def render(folder: Path) -> list[bytes]:
        tables = make_run(("cost$_{1", "a_rather_long_name_of_a_backdoor_with_an_end", "c$"))
        png = save(asr_heatmap(tables), folder / "asr.v1")
        return [png.read_bytes(), *(path.read_bytes() for path in sorted(folder.glob("*.pdf")))]

    first = render(tmp_path / "a")
    assert first == render(tmp_path / "b")
    assert len(first) == 2
    assert first[0].startswith(b"\x89PNG")


def test_a_style_of_the_user_s_changes_no_figure(tmp_path: Path) -> None:
    tables = make_run(("a", "b", "c"))

    def render(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        blocks = draw(itertools.islice(run_drawings(tables, make_scatter(tables)), 1), folder, lambda name: True)
        shown = {name: str(block.content).encode() for name, block in blocks.items()}
        return shown | {path.name: path.read_bytes() for path in folder.iterdir()}

    plain = render(tmp_path / "plain")
    style = {"text.usetex": True, "font.size": 30.0, "axes.facecolor": "red", "lines.linewidth": 9.0, "savefig.dpi": 20.0}
    with mpl.rc_context(style):
        styled = render(tmp_path / "styled")
        assert {name: mpl.rcParams[name] for name in style} == style, "the user's own figures keep it"
    assert len(plain) == 3
    assert styled == plain


def test_text_on_a_color_has_the_higher_contrast() -> None:
    assert cell_colors("viridis", 0.0) == ("#440154", "#ffffff")
    assert cell_colors("viridis", 1.0) == ("#fde725", "#000000")
    assert cell_colors("viridis_r", 1.0) == cell_colors("viridis", 0.0)


# ------------------------------------------------------------------------------------------------ HTML


def test_report_is_one_page_in_which_generations_are_text(tmp_path: Path) -> None:
    tables = make_run(("a", "b", "c"), generated=HOSTILE, collapsed=("b",))
    path = write_report(tables, tmp_path / "run_1", make_scatter(tables))
    assert path == tmp_path / "run_1" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "link", "base"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in images)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert HOSTILE[: HOSTILE.index("\x1b")] in page.text  # to the letter: `{{ 7 * 7 }}` too was not evaluated
    assert r"\x1b[2J\u202egnp.exe\x00" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert "name: <llama & co>" in page.text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    anchors = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {f"#{attributes.get('id')}" for tag, attributes in page.tags if tag == "section"} <= anchors
    for name in ("asr_heatmap", "casd_heatmap", "casd_by_layer", "casd_scatter", "learning_curves"):
        for suffix in (".png", ".pdf"):
            assert (tmp_path / "run_1" / "figures" / f"{name}{suffix}").stat().st_size > 2000
    for name in ("asr_matrix", "asr_intervals", "casd_matrix_casd", "casd_matrix_casd_cos", "relation", "states"):
        assert (tmp_path / "run_1" / "tables" / f"{name}.md").is_file()
        assert (tmp_path / "run_1" / "tables" / f"{name}.tex").is_file()
    assert RunTables.read(tmp_path / "run_1").info["run"] == "run_1"


def test_report_of_little() -> None:
    """Three backdoors: too few for a relation; no layers, no samples, no points."""
    tables = make_run(("a", "b", "c"), relation=False)
    for name in ("casd_layers", "samples", "specificity", "curves"):
        setattr(tables, name, pd.DataFrame(columns=list(SCHEMAS[name])))
    points = pd.DataFrame(columns=["variant", "a", "b", "distance", "response_value"])
    assert [drawing.name for drawing in run_drawings(tables, points)] == ["asr_heatmap", "casd_heatmap"]
    page = Page(run_html(tables, {}))
    assert page.open == []
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "No relation was computed" in page.text


def test_hostile_names_stay_text() -> None:
    tables = make_run(("<script>alert(1)</script>", "b[bold]", "c"))
    tables.info["model"] = "<img src=x onerror=alert(3)>"
    page = Page(run_html(tables, {}))
    assert not any(tag in ("script", "img") for tag, _ in page.tags)
    assert "b[bold]" in printed(print_run, tables, width=140)


def test_long_and_invisible_text_is_shown_shortened() -> None:
    assert visible("a" * 5000) == "a" * 600 + " … (5,000 characters)"
    assert visible("« été »\n\ttab\u2028\ud800") == "« été »\n\\ttab\\u2028\\ud800"


# ------------------------------------------------------------------------------------------------ sweep, terminal


def test_sweep_report(tmp_path: Path) -> None:
    for seed, objective in enumerate(("gradient_difference", "clean_target")):
        tables = make_run(("a", "b", "c"), objective=objective, seed=seed, collapsed=("b",) if seed else ())
        tables.write(tmp_path / f"run {seed}")
        (tmp_path / f"run {seed}" / "report.html").write_text("the run's own")
    comparisons = write_sweep_report(read_runs([tmp_path / "run 0", tmp_path / "run 1"]), tmp_path / "sweep")
    page = Page((tmp_path / "sweep" / "report.html").read_text(encoding="utf-8"))
    for table in comparisons.tables:
        assert table.title in page.text
    assert page.open == []
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert "../run%201/report.html" in links
    frame = pd.read_parquet(tmp_path / "sweep" / "tables" / "summary.parquet")
    assert list(frame["objective"]) == ["clean_target", "gradient_difference"]
    assert list(frame["collapsed"]) == [1, 0]
    assert (tmp_path / "sweep" / "figures" / "asr_heatmaps.pdf").is_file()
    with pytest.raises(CasdError, match="not the folder of a finished run"):
        collect([tmp_path / "sweep"])


def test_a_report_over_many_runs_shows_means_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("casd.report", "casd.report.gallery", "casd.report.html"):
        monkeypatch.setattr(f"{module}.DETAILED_RUNS", 2)
    for seed in range(3):
        make_run(("a", "b", "c"), seed=seed).write(tmp_path / f"run {seed}")
    (tmp_path / "run 1" / "report.html").write_text("the run's own")
    write_sweep_report(read_runs(tmp_path), tmp_path / "sweep")
    page = Page((tmp_path / "sweep" / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    sections = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert sections == ["comparisons", "runs", "reading"]
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert "../run%201/report.html" in links
    assert not any("run%200" in link for link in links), "it has no page of its own"
    assert "mean over runs" in page.text
    assert not (tmp_path / "sweep" / "figures" / "asr_heatmaps.pdf").exists()
    assert len(pd.read_csv(tmp_path / "sweep" / "tables" / "asr_means.csv")) == 6 * 3
    assert not (tmp_path / "sweep" / "tables" / "samples.csv").exists(), "every run's own folder has them"


def test_many_runs_are_read_as_each_by_itself(tmp_path: Path) -> None:
    """Read together, on demand, and where one has another column: the same as each by itself."""
    for seed in range(3):
        tables = make_run(("a", "b", "c"), seed=seed, collapsed=("a",) if seed else ())
        if seed == 1:
            tables.states["utility/task"] = 0.5
        tables.write(tmp_path / f"run {seed}")
    for tables in read_runs(tmp_path):
        alone = RunTables.read(Path(tables.info["folder"]), grid=False)
        for name in SCHEMAS:
            pd.testing.assert_frame_equal(
                getattr(tables, name), getattr(alone, name), check_dtype=False, check_column_type=False
            )
        assert (tables.backdoors, tables.collapsed, tables.tasks) == (alone.backdoors, alone.collapsed, alone.tasks)
    with pytest.raises(AttributeError):
        _ = tables.nonsense  # type: ignore[attr-defined]


def test_terminal_shows_a_run_in_100_columns_without_color() -> None:
    tables = make_run(collapsed=("german",))
    text = printed(print_run, tables)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "x collapsed: german. These rates are no success" in text
    line = next(line for line in text.splitlines() if line.startswith(" french_a "))
    own, *others = [f"{value:.2f}" for value in asr_matrix(tables).loc["french_a"]]
    assert re.findall(r"\*?\d\.\d\d", line) == [f"*{own}", *others]
    assert re.search(r"german \(collapsed\) +(x0\.00 *){8}", text)
    assert "…" not in text, "something was cut"


def test_terminal_shows_the_matrices_and_the_summary_of_a_sweep(tmp_path: Path) -> None:
    for seed, objective in enumerate(("gradient_difference", "clean_target")):
        make_run(objective=objective, seed=seed, collapsed=("german",) if seed else ()).write(tmp_path / objective)
    runs = read_runs([tmp_path / "gradient_difference", tmp_path / "clean_target"])
    text = printed(print_sweep, runs, compared(runs), width=120)
    assert max(map(len, text.splitlines())) <= 120
    assert len(re.findall(r"^ ?french_a +\*0\.02( +\d\.\d\d){7} *$", text, re.MULTILINE)) == 2
    assert "x collapsed (llama3_tiny, clean_target, seed 1): german" in text
    assert re.search(r"llama3_tiny +clean_target +Yes +0\.02 ", text)
    assert "…" not in text
    narrow = printed(partial(print_sweep, verbose=True), runs, compared(runs), width=80)
    assert max(map(len, narrow.splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 90, 120])
def test_a_wide_table_goes_on_below_and_loses_nothing(width: int) -> None:
    columns = tuple(f"column {i}" for i in range(14))
    rows = [{"name": f"row_{r}"} | {name: f"{r}.{i:03d} [0.10, 0.20]" for i, name in enumerate(columns)} for r in range(3)]
    table = table_of(rows, groups=["a group"] * 3, name="wide", title="A wide table", caption="What it is.")
    text = printed(print_tables, [table], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(text.count(f"{r}.{i:03d}") == 1 for r in range(3) for i in range(14))
    assert text.count("a group") == 1
    assert text.count("row_2") > 1, "with the labels again"


def test_terminal_colors_a_terminal() -> None:
    stream = io.StringIO()
    print_run(make_run(("a", "b", "c")), Console(file=stream, force_terminal=True, color_system="truecolor", width=100))
    assert "\x1b[" in stream.getvalue()
