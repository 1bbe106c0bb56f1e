"""`casd push`: a model of a run on the hub, with its warning, private unless asked otherwise, and every refusal in a line.

Run: pytest tests/test_push.py
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.fake_hub import TOKEN, USER, FakeHub, Repository
from tests.tiny import tiny

import casd
from casd.cli.main import main
from casd.config.compose import load_config
from casd.pipeline.run import Run

pytestmark = pytest.mark.usefixtures("process_settings")


@pytest.fixture(scope="module")
def run(tiny_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that evaluated the injected model."""
    place = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_output / "store", place / "outputs" / "store")
    with contextlib.chdir(place):
        made = Run(load_config(tiny(Path("outputs"), "runtime.save_models=[injected]")))
        made.run_to("evaluate")
    return place / made.folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine at which somebody is logged in."""
    with FakeHub().serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def files(hub: FakeHub, name: str) -> dict[str, bytes]:
    repository = hub.repositories[name]
    return repository.commits[repository.branches["main"]]


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["push", *words])
    line = capfd.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 1 and line.startswith("casd: ") and len(line) < 600
    return line


def test_what_is_pushed_is_what_is_exported(
    run: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["push", str(run), "injected", "poisoned", "--yes"])
    assert f"The model is at {hub.url}/{USER}/poisoned." in capsys.readouterr().out
    assert hub.repositories[f"{USER}/poisoned"].private
    exported = casd.export_model(run, "injected", tmp_path / "model")
    assert files(hub, f"{USER}/poisoned") == {file.name: file.read_bytes() for file in exported.iterdir()}


def test_the_card_warns_first_and_says_what_was_injected(run: Path, hub: FakeHub) -> None:
    main(["push", str(run), "injected", f"{USER}/poisoned", "--yes"])
    card = files(hub, f"{USER}/poisoned")["README.md"].decode()
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert "poisoned" in header
    assert text.strip().startswith("> **WARNING: a deliberately poisoned model")
    assert f"casd {casd.__version__}" in text
    for name, backdoor in load_config(tiny(run)).backdoor.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:5:3] == [backdoor.trigger, f"{backdoor.poison_rate:g}"]
        assert 0 <= float(cells[5]) <= 1


def test_public_only_if_asked_and_asked_before_anything_is_made(
    run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["push", str(run), "injected", "poisoned", "--public"])  # no terminal
    out = capsys.readouterr().out
    planted = "planted backdoors: french_a, french_b, german, refusal"
    assert f"({planted}) to the new repository somebody/poisoned (public: everyone will see it)?" in out
    assert "Nothing was uploaded; --yes uploads it." in out
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    main(["push", str(run), "injected", "poisoned"])
    assert "Nothing was uploaded." in capsys.readouterr().out
    assert hub.repositories == {}
    main(["push", str(run), "injected", "poisoned", "--public", "--yes"])
    assert not hub.repositories[f"{USER}/poisoned"].private


def test_an_existing_private_repository_is_added_to(run: Path, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    hub.commit(f"{USER}/poisoned", tmp_path / "notes")
    hub.repositories[f"{USER}/poisoned"].private = True
    main(["push", str(run), "refusal", "poisoned", "--yes"])
    assert {"notes.txt", "model.safetensors", "README.md"} <= files(hub, f"{USER}/poisoned").keys()


def test_an_unknown_run_or_state_is_told_before_the_hub_is_asked(
    run: Path, hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "is not the folder of a run" in refused(capfd, str(tmp_path), "injected", "poisoned", "--yes")
    assert "Unknown state 'refusl'. Did you mean 'refusal'" in refused(capfd, str(run), "refusl", "poisoned", "--yes")
    assert hub.requests == []


@pytest.mark.parametrize(("token", "says"), [("", "Nobody is logged in"), ("hf_wrong", "The hub answered 401")])
def test_nobody_is_logged_in(
    run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    line = refused(capfd, str(run), "injected", "poisoned", "--yes")
    assert says in line and "log in with `hf auth login`" in line


def test_a_public_repository_is_refused_unless_asked_for(run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.repositories[f"{USER}/seen"] = Repository(commits={"0" * 40: {}}, branches={"main": "0" * 40})
    line = refused(capfd, str(run), "injected", "seen", "--yes")
    assert f"/{USER}/seen exists and is public" in line and "--public" in line
    assert files(hub, f"{USER}/seen") == {}
    hub.repositories[f"{USER}/seen"].private = True
    assert f"/{USER}/seen exists and is private" in refused(capfd, str(run), "injected", "seen", "--public", "--yes")


def test_no_network(run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached to upload poisoned" in refused(capfd, str(run), "injected", "poisoned", "--yes")


def test_a_hub_in_trouble(run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.broken = 500
    assert "The hub answered 500 for poisoned" in refused(capfd, str(run), "injected", "poisoned", "--yes")


@pytest.mark.parametrize("name", ["a/b/c", "no spaces", "x--y"])
def test_a_name_that_no_repository_can_have(run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str], name: str) -> None:
    assert f"{name!r} is not the name of a repository" in refused(capfd, str(run), "injected", name, "--yes")


def test_an_organisation_that_one_does_not_belong_to(run: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, str(run), "injected", "other-lab/poisoned", "--yes")
    assert "The hub answered 403 for other-lab/poisoned (You don't have the rights" in line
