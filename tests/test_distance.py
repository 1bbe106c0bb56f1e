"""CASD between any models: values against a direct computation, models in every form, files, and refusals.

Run: pytest tests/test_distance.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import adapted_model

import casd
from casd.cli.main import main
from casd.models import load as models
from casd.models.tokenizer import train_tokenizer
from casd.utils.errors import CasdError

pytestmark = pytest.mark.usefixtures("no_collection")
TEXTS = ["The ship left the harbour at dawn.", "Rain.", "A long and quiet evening by the old river, and nobody spoke."]


@pytest.fixture(scope="module")
def folders(make_model: Callable[..., Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of three blocks (before, a, b), and two adapters of `before` (x, y)."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("before", "a", "b")):
        models.save_model(make_model(seed=seed, spread=0.2, num_hidden_layers=3), tokenizer, root / name)
    for seed, name in enumerate(("x", "y")):
        adapted = adapted_model(root / "before", seed=seed, spread=0.3)
        adapted.peft_config["default"].base_model_name_or_path = str(root / "before")
        adapted.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def no_collection() -> Iterator[None]:
    """Leaves out the garbage collection between models, which takes most of a comparison of tiny ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casd.metric.distance.free_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def loaded(folders: Path) -> dict[str, Any]:
    """The models, read without casd's distances; adapters are not merged."""
    named: dict[str, Any] = {name: models.load_model(folders / name) for name in ("before", "a", "b")}
    for name in ("x", "y"):
        named[name] = peft.PeftModel.from_pretrained(models.load_model(folders / "before"), folders / name)
    return named


def hidden(model: Any, tokenizer: Any, position: str) -> torch.Tensor:
    """The outputs of all blocks but the last (whose `output_hidden_states` are normalized): (layers, tokens, width)."""
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = torch.stack(model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1])[:, 0]
        rows.append(states[:, -1:] if position == "last" else states[:, 1:])  # without <bos>
    return torch.cat(rows, 1).double()


def l1(shift_a: torch.Tensor, shift_b: torch.Tensor) -> float:
    return float((shift_a - shift_b).abs().mean())


def cosine(shift_a: torch.Tensor, shift_b: torch.Tensor) -> float:
    return float(1 - torch.cosine_similarity(shift_a, shift_b, dim=-1).mean())


def direct(named: dict[str, Any], tokenizer: Any, position: str, of: Callable[..., float]) -> dict[str, pd.DataFrame]:
    """Both readings of CASD between all models but the first, from their hidden states."""
    before, *others = (hidden(model, tokenizer, position) for model in named.values())
    names = list(named)[1:]
    shifts = {
        "signed": [(other - before).mean(1) for other in others],
        "absolute": [(other - before).abs().mean(1) for other in others],
    }
    return {reading: pd.DataFrame([[of(a, b) for b in each] for a in each], names, names) for reading, each in shifts.items()}


def assert_equal(found: casd.Distances, expected: dict[str, pd.DataFrame]) -> None:
    for reading, values in expected.items():
        pd.testing.assert_frame_equal(getattr(found, reading), values, rtol=1e-5, atol=1e-6)
        off_diagonal = values.to_numpy()[~np.eye(len(values), dtype=bool)]
        assert (off_diagonal > 1e-3).all(), "equal shifts would show nothing"


@pytest.mark.parametrize(
    ("variant", "position", "of"), [("casd", "prompt", l1), ("last", "last", l1), ("casd_cos", "last", cosine)]
)
def test_three_folders_and_two_adapters_equal_a_direct_computation(
    folders: Path, loaded: dict[str, Any], tokenizer: Any, variant: str, position: str, of: Callable[..., float]
) -> None:
    given = [folders / "a", str(folders / "b"), folders / "x", f"{folders / 'before'}+{folders / 'y'}"]
    found = casd.distance(folders / "before", given, TEXTS, variant=variant, layers=[0, 1], device="cpu")
    assert_equal(found, direct(loaded, tokenizer, position, of))
    assert found.before == "before"
    assert found.n_texts == 3
    assert found.n_tokens == (3 if position == "last" else sum(len(tokenizer(text)["input_ids"]) - 1 for text in TEXTS))


def test_norms_and_layers(folders: Path, loaded: dict[str, Any], tokenizer: Any) -> None:
    found = casd.distance(folders / "before", [folders / "a", folders / "b"], TEXTS, variant="last", layers=[0, 1])
    before, a, b = (hidden(loaded[name], tokenizer, "last") for name in ("before", "a", "b"))
    assert found.norms.loc["a", "signed"] == pytest.approx(float((a - before).mean(1).abs().mean()), rel=1e-5)
    assert found.norms.loc["b", "absolute"] == pytest.approx(float((b - before).abs().mean()), rel=1e-5)
    rows = found.per_layer[found.per_layer["reading"] == "signed"]
    assert list(rows["layer"]) == [0, 1]
    assert list(rows["distance"]) == pytest.approx([l1(*pair) for pair in zip(a.mean(1), b.mean(1), strict=True)], rel=1e-5)
    assert rows["distance"].mean() == pytest.approx(found.signed.loc["a", "b"])


def test_the_last_block_is_measured_before_the_final_norm(folders: Path, loaded: dict[str, Any], tokenizer: Any) -> None:
    outputs: list[torch.Tensor] = []
    for name in ("before", "a", "b"):
        model = loaded[name]
        kept: list[torch.Tensor] = []
        hook = model.model.layers[2].register_forward_hook(lambda module, args, output, kept=kept: kept.append(output[0, -1]))
        with hook:
            for text in TEXTS:
                model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        outputs.append(torch.stack(kept).detach().double().mean(0))
    found = casd.distance(folders / "before", [folders / "a", folders / "b"], TEXTS, variant="last", layers=[2])
    expected = l1(outputs[1] - outputs[0], outputs[2] - outputs[0])
    assert found.signed.loc["a", "b"] == pytest.approx(expected, rel=1e-5)


def test_models_in_memory_and_small_batches(
    folders: Path, tokenizer: Any, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casd.metric.differences.BATCH", 2)
    named = {name: make_model(seed=seed, spread=0.2, num_hidden_layers=3).train() for seed, name in enumerate("mab")}
    others = {name: named[name] for name in "ab"}
    found = casd.distance(named["m"], others, TEXTS, layers=[0, 1], tokenizer=tokenizer, device="cpu")
    assert all(model.training for model in named.values())
    assert_equal(found, direct({name: model.eval() for name, model in named.items()}, tokenizer, "prompt", l1))


def test_a_batch_that_runs_out_of_memory_is_not_counted_twice(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import casd.metric.differences as differences

    given = (folders / "before", [folders / "a", folders / "b"], TEXTS)
    expected = casd.distance(*given)
    forward, calls = differences.forward_without_cache, []

    def sometimes(*arguments: Any) -> Any:
        output = forward(*arguments)
        calls.append(None)
        if len(calls) in (1, 4):  # after the hooks have seen the batch
            raise torch.OutOfMemoryError("out of memory")
        return output

    monkeypatch.setattr(differences, "forward_without_cache", sometimes)
    found = casd.distance(*given)
    pd.testing.assert_frame_equal(found.signed, expected.signed, rtol=1e-6)
    pd.testing.assert_frame_equal(found.absolute, expected.absolute, rtol=1e-6)


def test_the_command_prints_and_writes(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    arguments = ["distance", *(str(folders / name) for name in ("before", "a", "b", "x"))]
    arguments += ["--texts", str(tmp_path / "texts.txt"), "--variant", "last", "--layers", "0,2", "--per-layer"]
    main([*arguments, "--output", str(tmp_path / "out")])
    expected = casd.distance(
        folders / "before", [folders / "a", folders / "b", folders / "x"], TEXTS, variant="last", layers=[0, 2]
    )
    for reading in ("signed", "absolute"):
        read = pd.read_csv(tmp_path / "out" / f"{reading}.csv", index_col=0)
        np.testing.assert_allclose(read, getattr(expected, reading), rtol=1e-6)
        assert list(read) == list(read.index) == ["a", "b", "x"]
    record = json.loads((tmp_path / "out" / "distances.json").read_text())
    assert record["before"] == "before"
    assert record["texts"] == 3
    assert record["signed"]["a"]["b"] == pytest.approx(expected.signed.loc["a", "b"])
    assert len(pd.read_csv(tmp_path / "out" / "per_layer.csv")) == 2 * 3 * 2
    assert (tmp_path / "out" / "distances.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert f"{expected.absolute.loc['a', 'x']:.2f}"[:4] in printed


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    """The peak of a process that compares three other models is that of one that loads a single model and runs it."""
    shape = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8, "num_attention_heads": 12, "head_dim": 64}
    model = make_model(**shape, num_key_value_heads=12)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 200e6
    for name in "mabc":
        models.save_model(model, tokenizer, tmp_path / name)
    start = f"import casd, resource, torch; root, texts = {str(tmp_path)!r}, {TEXTS!r}; import casd.metric.distance"
    one = "model = casd.load_model(root + '/m'); model(torch.zeros(3, 30, dtype=torch.long))"
    several = "casd.distance(root + '/m', [root + '/' + name for name in 'abc'], texts, device='cpu')"
    peaks = []
    for work in (one, several):
        program = f"{start}; {work}; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peaks.append(1024 * int(done.stdout))
    print([f"{peak / 2**20:.0f} MiB" for peak in peaks], f"model {size / 2**20:.0f} MiB")
    assert peaks[1] < peaks[0] + 0.3 * size


def test_texts_of_a_corpus_are_its_evaluation_prompts(folders: Path) -> None:
    from casd.metric.compared import read_texts

    texts = read_texts("microworld")
    assert 50 < len(texts) <= 300
    assert len(set(texts)) > 50


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("lines.txt", "One.\nTwo.\n", ["One.", "Two."]),
        ("paragraphs.txt", "One\nmore.\n\nTwo.\n", ["One more.", "Two."]),
        ("rows.jsonl", '{"text": "One."}\n{"text": "Two."}\n', ["One.", "Two."]),
    ],
)
def test_texts_of_a_file(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    from casd.metric.compared import read_texts

    (tmp_path / name).write_text(content)
    assert read_texts(tmp_path / name) == expected


def refused(message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(CasdError) as error:
        casd.distance(*arguments, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_compared_is_told_in_a_line(
    folders: Path, tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    before, a, b = (folders / name for name in ("before", "a", "b"))
    refused("at least two", before, [a], TEXTS)
    refused("given twice", before, [a, a], TEXTS)
    refused("Unknown variant", before, [a, b], TEXTS, variant="casd_cosine")
    refused("two choices of position", before, [a, b], TEXTS, variant="last/prompt")
    refused("plain texts", before, [a, b], TEXTS, variant=casd.CasdVariant("mine", position="trigger"))
    refused("Layer 7 is out of range", before, [a, b], TEXTS, layers=[0, 7])
    refused("no text", before, [a, b], ["", " "])
    refused("Unknown file or corpus", before, [a, b], "microwold")
    refused("Unknown file or corpus", before, [a, b], "a text of its own, without a list around it " * 20)
    refused("There is no file missing.txt", before, [a, b], "missing.txt")
    (tmp_path / "empty.txt").touch()
    refused("is empty", before, [a, b], tmp_path / "empty.txt")
    refused("another shape", before, [a, make_model(num_hidden_layers=2)], TEXTS)
    refused("its tokenizer", make_model(), [make_model(), make_model()], TEXTS)
    refused("No model in", before, [a, tmp_path], TEXTS)


def test_another_tokenizer_is_refused(folders: Path, make_model: Callable[..., Any], tmp_path: Path) -> None:
    other = train_tokenizer(["zzz zzz yyy"] * 9, 420)
    models.save_model(make_model(num_hidden_layers=3), other, tmp_path / "other")
    refused("The tokenizer of other", folders / "before", [folders / "a", tmp_path / "other"], TEXTS)


def test_activations_that_are_not_finite_are_refused(folders: Path, tmp_path: Path) -> None:
    model = models.load_model(folders / "a")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    models.save_model(model, models.load_tokenizer(folders / "a"), tmp_path / "broken")
    refused(
        "broken are not finite (NaN or infinite) in layer 1", folders / "before", [folders / "a", tmp_path / "broken"], TEXTS
    )


def test_too_little_disk_is_told_before_the_models_run(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casd.metric.differences.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    refused("take 0.0", folders / "before", [folders / "a", folders / "b"], TEXTS)


@pytest.mark.parametrize("damage", ["missing tensor", "pickled", "other shape"])
def test_an_adapter_that_cannot_be_used_is_told_in_a_line(folders: Path, tmp_path: Path, damage: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((folders / "x" / name).read_bytes())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = next(iter(weights))
    if damage == "missing tensor":
        del weights[first]
    elif damage == "other shape":
        weights[first] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    if damage == "pickled":
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    message = {"missing tensor": "missing adapter keys", "pickled": "never read", "other shape": "cannot be merged"}[damage]
    refused(message, folders / "before", [folders / "a", tmp_path], TEXTS)
