"""Models of the Hugging Face hub, from a hub on this machine: commits, downloads, the cache, and every refusal in a line.

Run: python -m pytest tests/test_hub.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from tests.conftest import MakeModel, adapted_model
from tests.fake_hub import TOKEN, FakeHub

from casd.config import ModelConfig
from casd.data.corpora.passages import Corpus
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.models import hub
from casd.models import load as models
from casd.utils.errors import CasdError, ModelError, StoreError

NAME = "some-lab/tiny"
NO_TEXT = Corpus((), (), (), ())


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that is asked instead of the real one, and an empty cache."""
    with FakeHub().serving() as server:
        point_to(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        another_process()
        yield server
        another_process()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def another_process() -> None:
    """What is remembered within a process is forgotten."""
    hub.resolve.cache_clear()


@pytest.fixture
def folder(make_model: MakeModel, tokenizer: Any, tmp_path: Path) -> Path:
    """A model as casd saves it."""
    models.save_model(make_model("qwen3", seed=7, spread=0.2), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def config(path: str = NAME, revision: str = "main") -> ModelConfig:
    return ModelConfig(name="m", source="pretrained", path=path, revision=revision)


def logits_of(model: Any, encoder: Encoder) -> torch.Tensor:
    batch = encoder.prompt_batch([Prompt("The old painter sings."), Prompt("Le matin, la boulangère chante.")])
    with torch.inference_mode():
        return model(**batch).logits


def refusal(config: ModelConfig, kind: type[CasdError] = ModelError) -> str:
    """The line with which such a model is refused."""
    with pytest.raises(kind) as error:
        models.create_model(config, NO_TEXT, seed=0)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# ---------------------------------------------------------------- download and cache


def test_a_base_and_an_adapter_are_downloaded_and_identified_by_their_commits(
    server: FakeHub, folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    adapted = adapted_model(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    commits = server.commit(NAME, folder), server.commit("some-lab/lora", tmp_path / "adapter")
    both = config(f"{NAME}+some-lab/lora")
    model, _ = models.create_model(both, NO_TEXT, seed=0)
    torch.testing.assert_close(logits_of(model, encoder), logits_of(adapted, encoder), rtol=1e-4, atol=1e-4)
    found = models.fingerprint(both)
    assert found == {
        "base/repository": NAME,
        "base/commit": commits[0],
        "adapter": "some-lab/lora",
        "adapter_commit": commits[1],
    }
    assert "give its base model, too" in refusal(config("some-lab/lora"))


def test_a_model_is_downloaded_once_and_is_the_one_that_was_uploaded(
    server: FakeHub, folder: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = models.load_model(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("A card.")
    (folder / "consolidated.safetensors").write_bytes(weights)
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    server.commit(NAME, folder)

    model, tokenizer = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(expected, encoder))
    assert tokenizer("Où est-elle ?")["input_ids"] == encoder.tokenizer("Où est-elle ?")["input_ids"]
    assert len([path for method, path in server.requests if method == "GET" and "/cdn/" in path]) == 1
    assert f"Downloading {NAME} from the hub, 0." in capsys.readouterr().err
    for ending in (".bin", ".md", "consolidated.safetensors", "params.json"):
        assert server.asked_for(ending) == []

    server.requests.clear()
    another_process()
    again, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(again, encoder), logits_of(expected, encoder))
    assert server.requests == [("GET", f"/api/models/{NAME}/revision/main")]
    assert "Downloading" not in capsys.readouterr().err


def test_a_model_in_several_files(server: FakeHub, folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    expected = models.load_model(folder)
    shutil.copytree(folder, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    expected.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    server.commit(NAME, tmp_path / "shards")
    model, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(expected, encoder))


def test_the_fingerprint_is_the_commit_and_needs_no_download(server: FakeHub, folder: Path, encoder: Encoder) -> None:
    first = server.commit(NAME, folder)
    assert models.fingerprint(config()) == {"repository": NAME, "commit": first}
    assert server.asked_for("config.json") == server.asked_for(".safetensors") == []

    expected = logits_of(models.load_model(folder), encoder)
    file = folder / "model.safetensors"
    weights = {name: 2 * value for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    second = server.commit(NAME, folder)
    assert second != first
    # Until it ends, a process stays with the commit that its results are named by, also if it downloads later.
    assert models.fingerprint(config())["commit"] == first
    assert torch.equal(logits_of(models.create_model(config(), NO_TEXT, seed=0)[0], encoder), expected)
    another_process()
    assert models.fingerprint(config())["commit"] == second
    assert not torch.equal(logits_of(models.create_model(config(), NO_TEXT, seed=0)[0], encoder), expected)


def test_a_branch_and_a_commit_can_be_named(server: FakeHub, folder: Path, encoder: Encoder) -> None:
    old = server.commit(NAME, folder)
    expected = logits_of(models.load_model(folder), encoder)
    (folder / "merges.txt").write_text("")
    branch = server.commit(NAME, folder, branch="refs/pr/3")
    assert models.fingerprint(config(revision="refs/pr/3"))["commit"] == branch != old
    server.requests.clear()
    assert models.fingerprint(config(revision=old))["commit"] == old
    assert server.requests == []
    model, _ = models.create_model(config(revision=old), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), expected)


def nowhere(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port at which nothing listens."""
    point_to("http://127.0.0.1:9", monkeypatch)


def offline(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def broken(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with troubles of its own."""
    server.broken = 503


@pytest.mark.parametrize("trouble", [nowhere, offline, broken])
def test_without_the_hub_the_cache_is_enough(
    server: FakeHub,
    folder: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[FakeHub, pytest.MonkeyPatch], None],
) -> None:
    commit = server.commit(NAME, folder)
    models.create_model(config(), NO_TEXT, seed=0)
    another_process()
    trouble(server, monkeypatch)
    for revision in ("main", commit):
        assert models.fingerprint(config(revision=revision)) == {"repository": NAME, "commit": commit}
        model, _ = models.create_model(config(revision=revision), NO_TEXT, seed=0)
        assert torch.equal(logits_of(model, encoder), logits_of(models.load_model(folder), encoder))
    message = refusal(config("some-lab/other"))
    assert "cannot be reached" in message
    assert "does not have all of it" in message
    assert "model.path" in message
    with pytest.raises(ModelError, match="cannot be reached"):
        models.fingerprint(config("some-lab/other"))


def test_without_the_hub_a_cache_that_another_program_filled_is_enough(
    server: FakeHub, folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older programs leave no list of a commit's files there."""
    server.commit(NAME, folder)
    models.create_model(config(), NO_TEXT, seed=0)
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}" / "trees")
    another_process()
    nowhere(server, monkeypatch)
    model, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(models.load_model(folder), encoder))


def test_a_download_that_was_interrupted_is_not_taken_for_a_model(
    server: FakeHub, folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.commit(NAME, folder)
    server.cut_short = True
    assert f"The download of {NAME} failed" in refusal(config())
    another_process()
    offline(server, monkeypatch)
    assert "does not have all of it" in refusal(config())
    another_process()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.cut_short = False
    model, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(models.load_model(folder), encoder))


def test_a_file_that_was_damaged_in_the_cache(server: FakeHub, folder: Path, encoder: Encoder) -> None:
    server.commit(NAME, folder)
    models.create_model(config(), NO_TEXT, seed=0)
    file = (hub.download(NAME, "main") / "model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-1000])
    message = refusal(config())
    assert f"delete {file} and" in message
    file.unlink()
    model, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(models.load_model(folder), encoder))


def test_a_full_disk(server: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, mount_disk: Callable[[str], Path]) -> None:
    server.commit(NAME, folder)
    disk = mount_disk("100k")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk))
    message = refusal(config(), StoreError)
    assert "No space left" in message
    assert NAME in message
    assert [file for file in disk.rglob("*") if file.name.endswith((".incomplete", ".safetensors"))] == []


# ---------------------------------------------------------------- refusals


def test_a_gated_model(server: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
    commit = server.commit(NAME, folder, gated=True)
    assert models.fingerprint(config())["commit"] == commit  # which commit it is, is public
    message = refusal(config())
    for part in (f"{server.url}/{NAME}", "accept its conditions", "hf auth login", "model.path"):
        assert part in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model, _ = models.create_model(config(), NO_TEXT, seed=0)
    assert torch.equal(logits_of(model, encoder), logits_of(models.load_model(folder), encoder))


def test_a_token_that_the_hub_does_not_know(server: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.commit(NAME, folder)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    message = refusal(config())
    assert "401" in message
    assert "hf auth login" in message


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_model_that_is_not_there(server: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(config("some-lab/tyni"))
    for part in ("some-lab/tyni", "nor a folder", "model.path"):
        assert part in message
    with pytest.raises(ModelError, match="some-lab/tyni"):
        models.fingerprint(config("some-lab/tyni"))


@pytest.mark.parametrize("revision", ["v2", "0123456789" * 4])
def test_a_revision_that_is_not_there(server: FakeHub, folder: Path, revision: str) -> None:
    server.commit(NAME, folder)
    message = refusal(config(revision=revision))
    assert repr(revision) in message
    assert "model.revision" in message


def test_a_name_that_the_hub_cannot_have(server: FakeHub) -> None:
    assert "neither a local folder nor a valid hub id" in refusal(config("some--lab/tiny"))
    assert server.requests == []


def test_a_model_with_pickles_alone(server: FakeHub, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    server.commit(NAME, folder)
    message = refusal(config())
    for part in (NAME, "pytorch_model.bin", "pickle", "save_pretrained", "refs/pr/"):
        assert part in message
    assert server.asked_for(".bin") == []


def test_a_model_in_gguf_alone(server: FakeHub, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny-Q8.gguf")
    server.commit(NAME, folder)
    assert "tiny-Q8.gguf" in refusal(config())


def test_weights_of_something_else_are_not_even_downloaded(server: FakeHub, folder: Path) -> None:
    text = (folder / "config.json").read_text().replace('"qwen3"', '"t5"').replace("Qwen3ForCausalLM", "T5Model")
    (folder / "config.json").write_text(text)
    server.commit(NAME, folder)
    assert "not a causal language model" in refusal(config())
    assert server.asked_for(".safetensors") == []


def test_a_repository_without_a_model(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("Nothing here.")
    server.commit(NAME, tmp_path / "data")
    assert "config.json" in refusal(config())


# ---------------------------------------------------------------- the environment


def test_the_hub_and_the_cache_are_those_of_the_environment(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user's."""
    commit = server.commit(NAME, folder)
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_HUB_CACHE", None)
    program = "import sys; from casd.models import hub; print(hub.resolve(sys.argv[1], 'main').resolved)"
    command = [sys.executable, "-c", program, NAME]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == commit
    server.broken = 503  # what it answers now comes from the cache
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == commit
    assert list((tmp_path / "home").rglob("refs/main"))
