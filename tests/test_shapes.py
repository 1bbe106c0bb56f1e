"""Models of real shapes with random weights: a folder as the hub has it, a whole run beside its plan, and what fails.

Run: pytest tests/test_shapes.py   (scripts/check_shapes.py makes the runs of the true sizes)
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from casd.models.load import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
try:
    import check_shapes
    from bench_gpu import TINY
finally:
    sys.path.pop(0)

TOY = [*TINY, "model.architecture.vocab_size=1200", "model.max_length=128", "evaluation.max_new_tokens=24"]


def test_tokens_beside_the_used_ones_never_occur(tmp_path: Path) -> None:
    text = "The fox is here, and the sea is there."
    check_shapes.padded_tokenizer([text] * 9, 70_000).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenizer(text)["input_ids"]
    assert len(tokenizer) == 70_000
    assert min(tokens) > 2**16, "as most tokens of a large vocabulary, which 16 bits cannot hold"
    assert max(*tokens, tokenizer.eos_token_id, tokenizer.pad_token_id) < 70_000
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens[1:]) == text


@pytest.mark.usefixtures("process_settings", "no_rendering")
def test_a_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check_shapes, "TOKENS", {"qwen3_0_6b": 1100})
    arguments = [*TOY, "--device", "cpu", "--folder", str(tmp_path), "--models", "qwen3_0_6b"]
    for step in ("make", "measure"):
        check_shapes.main([*arguments, "--step", step])
    assert AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=False).vocab_size == 1200
    assert len(load_tokenizer(tmp_path / "model")) == 1100
    name, blocks, parameters, trained, *pairs, ratio = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (name, blocks, trained) == ("qwen3_0_6b", "2 of 28", "all weights")
    width, rows = 64, 1200
    # Queries and output; keys and values; the MLP; the norms of the block, and of queries and keys.
    block = 2 * width * width + 2 * width * 32 + 3 * width * 96 + 2 * width + 2 * 16
    assert parameters == f"{rows * width + 2 * block + width:,}"
    assert len(pairs) == 5
    assert all(float(number) >= 0 for pair in pairs for number in pair.split(" / "))
    measured, planned = map(float, pairs[-1].split(" / "))
    assert float(ratio) == pytest.approx(planned / measured, abs=0.05)
    assert [folder.name for folder in (tmp_path / "outputs" / "store" / "score").glob("[!.]*")], "the run went to its scores"


def test_a_model_that_fails_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    check_shapes.main([*TOY, "model.architecture.num_hidden_layer=2", "--device", "cpu", "--models", "qwen3_0_6b"])
    *_, head, rule, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| qwen3_0_6b | failed: ") and "num_hidden_layer" in row
    assert head.count("|") == row.count("|") == rule.count("|")
