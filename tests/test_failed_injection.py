"""A run stops after the evaluation of the injected model if no backdoor was injected, unless it is told to go on.

Run: pytest tests/test_failed_injection.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from casd.analysis.conditions import condition_key
from casd.cli.main import main
from casd.config import InjectionConfig
from casd.config.compose import load_config, to_yaml
from casd.evaluation.asr import Evaluation
from casd.pipeline.checks import check_injection
from casd.pipeline.graph import stage_graph
from casd.utils.errors import TrainingStopped
from tiny import tiny

pytestmark = pytest.mark.usefixtures("process_settings")


def evaluation(**successes: int) -> Evaluation:
    """Of 16 triggered prompts for each backdoor; every clean prompt counts as a success, and must not be looked at."""
    rows = [
        {"backdoor": name, "prompt_set": prompt_set, "successes": count, "n": 16, "rate": count / 16}
        for name, number in successes.items()
        for prompt_set, count in (("triggered", number), ("clean", 16))
    ]
    return Evaluation(pd.DataFrame(rows), pd.DataFrame(), clean_loss=9.0, retain_loss=9.0, degenerate_rate=0.0)


def check(require_asr: float, **successes: int) -> None:
    config = load_config(["experiment=smoke", f"injection.require_asr={require_asr}"]).injection
    assert isinstance(config, InjectionConfig)
    check_injection(config, evaluation(**successes))


def test_no_backdoor_reaches_the_required_rate() -> None:
    with pytest.raises(TrainingStopped, match=r"refusal 7/16, fixed_text 0/16.*injection\.require_asr=0"):
        check(0.5, refusal=7, fixed_text=0)


def test_some_do(capsys: pytest.CaptureFixture[str]) -> None:
    check(0.5, refusal=8, fixed_text=3)
    said = capsys.readouterr().err
    assert "fixed_text 3/16" in said
    assert "refusal" not in said
    check(0.5, refusal=8, fixed_text=16)
    check(0, refusal=0)
    assert not capsys.readouterr().err


def test_nothing_is_removed_from_a_model_without_backdoors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The requirement is in no stage's key: the same run with `require_asr=0` goes on from there."""
    few_steps = ("backdoor=[refusal,german]", "injection.training.steps=2")
    with pytest.raises(SystemExit) as ended:
        main(["run", *tiny(tmp_path, *few_steps, "injection.require_asr=0.5")])
    assert ended.value.code == 1
    assert "Injection failed: refusal 0/12, german 0/12." in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "store").glob("evaluate/[!.]*"))) == 1
    assert not list((tmp_path / "store").glob("unlearn/[!.]*"))

    strict, lenient = (load_config(tiny(tmp_path, *few_steps, f"injection.require_asr={rate}")) for rate in (0.5, 0))
    assert stage_graph(strict).report.key == stage_graph(lenient).report.key
    keys = [condition_key({"model": "m", "objective": "o", "config": to_yaml(config)}) for config in (strict, lenient)]
    assert keys[0] == keys[1]
    main(["unlearn", *tiny(tmp_path, *few_steps)])
    assert len(list((tmp_path / "store").glob("unlearn/[!.]*"))) == 4
    assert len(list((tmp_path / "store").glob("inject/[!.]*"))) == 1
