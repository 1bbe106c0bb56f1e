"""The ten models that have a configuration: their published sizes, and a whole run of each architecture at a tiny width.

Run: python -m pytest tests/test_families.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from casd.config import ModelConfig
from casd.config.compose import load_config
from casd.config.options import config_folder
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL
from casd.models import load as models
from casd.pipeline.run import Run
from casd.planning.blueprint import blueprint
from tiny import OVERRIDES, SMALLER

PUBLISHED = {
    # Parameters in billions, all and without embeddings. Qwen3: the models' cards. Llama: the models' cards, Llama 3.1 8B's
    # being rounded (the hub counts 8.03 in its files). Gaperon: the models' cards ("1.5 billion", "8 billion", "24 billion").
    "qwen3_0_6b": (0.6, 0.44),
    "qwen3_1_7b": (1.7, 1.4),
    "qwen3_4b": (4.0, 3.6),
    "qwen3_8b": (8.2, 6.95),
    "llama3_2_1b": (1.23, None),
    "llama3_2_3b": (3.21, None),
    "llama3_1_8b": (8.03, None),
    "gaperon_1b": (1.5, None),
    "gaperon_8b": (8.0, None),
    "gaperon_24b": (24.0, None),
}
SIBLINGS = ["qwen3_1_7b", "qwen3_4b", "qwen3_8b", "llama3_2_3b", "llama3_1_8b", "gaperon_8b", "gaperon_24b"]
"""Models whose architecture is that of another one of their family at another width: their whole runs are slow tests."""
BACKDOORS = ["french_a", "refusal"]
HEAD, VOCABULARY = 16, 420

pytestmark = pytest.mark.usefixtures("process_settings", "no_rendering")


def config_of(name: str) -> ModelConfig:
    return load_config([f"model={name}", "injection=continual"]).model


def test_all_models_of_the_hub_are_tested() -> None:
    """A configuration that is added has to be added here, unless its architecture is that of another one."""
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (config_folder() / "model").glob("*.yaml")}
    paths = {name: str(content.get("path") or "") for name, content in files.items() if "defaults" not in content}
    assert {name for name, path in paths.items() if "/" in path and not path.startswith("pypi:")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size(name: str) -> None:
    config = config_of(name)
    assert models.origin(config) == "hub"
    assert config.dtype == "bfloat16"
    plan = blueprint(config)
    total, without_embeddings = PUBLISHED[name]
    assert plan.parameters / 1e9 == pytest.approx(total, rel=0.02)
    embeddings = plan.vocab_size * plan.width * (1 if plan.config.tie_word_embeddings else 2)
    if without_embeddings:
        assert (plan.parameters - embeddings) / 1e9 == pytest.approx(without_embeddings, rel=0.01)
    # What the file's first lines say of it is this, too.
    text = (config_folder() / "model" / f"{name}.yaml").read_text()
    assert f"{plan.parameters / 1e9:.2f}B parameters" in text
    assert f"This architecture has {plan.parameters:,} parameters" in text
    assert f"{plan.weight_bytes() / 1e9:.1f} GB of weights in bfloat16" in text
    gated = not name.startswith("qwen3")
    assert (f"Gated: accept its conditions on huggingface.co/{config.path}" in text) == gated


def tiny_architecture(config: ModelConfig) -> dict[str, Any]:
    """The same architecture at a tiny width: two layers, one key-value head, and all proportions as they were.

    Kept are: query heads for a key-value head, attention's width over the residual stream's, the feed-forward layer's over
    it, whether embeddings are tied, and the rotary embedding with its scaling.
    """
    big = config.architecture
    heads = big["num_attention_heads"] // big["num_key_value_heads"]
    width = heads * HEAD * big["hidden_size"] // (big["num_attention_heads"] * big["head_dim"])
    return big | {
        "hidden_size": width,
        "intermediate_size": width * big["intermediate_size"] // big["hidden_size"],
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
    }


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SIBLINGS else name for name in PUBLISHED])
def downloaded(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path) -> tuple[str, Path]:
    """A configuration's name, and a folder such as a download of its model gives, with random weights."""
    config = config_of(request.param)
    shape = tiny_architecture(config)
    model = models.from_scratch(str(config.model_type), shape, tokenizer, seed=0, dtype=config.dtype)
    models.save_model(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "generation_config.json").is_file()
    assert model.config.tie_word_embeddings == config.architecture["tie_word_embeddings"]
    assert model.config.rope_parameters["rope_theta"] == config.architecture["rope_parameters"]["rope_theta"]
    return request.param, tmp_path / "model"


def test_a_whole_run(downloaded: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = downloaded
    small = [override for override in OVERRIDES if not override.startswith(("experiment=", "model."))]
    made = Run(
        load_config(
            [
                *small,
                *SMALLER,
                f"model={name}",
                f"model.path={folder}",
                "model.max_length=128",
                f"backdoor=[{','.join(BACKDOORS)}]",
                "injection=continual",
                "injection.pretraining=null",
                "injection.training.steps=6",
                "injection.require_asr=0",
                "unlearning.training.steps=2",
                f"runtime.output={tmp_path / 'out'}",
            ]
        )
    )
    made.run_to("report")
    assert "Cross Activation Shift Distance" in (made.folder / "report.html").read_text()
    tables = {file.stem: pd.read_parquet(file) for file in (made.folder / "tables").glob("*.parquet")}
    removals = [*BACKDOORS, CLEAN_CONTROL, PHANTOM_CONTROL]
    assert set(tables["asr"]["state"]) == {INJECTED, *removals}
    casd = tables["casd"]
    assert set(casd["variant"]) >= {"casd", "casd_cos"}
    assert casd["distance"].notna().all()
