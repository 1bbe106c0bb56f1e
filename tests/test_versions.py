"""The commit that made a result is recorded with it, and no other repository's commit is taken for it.

Run: pytest tests/test_versions.py
"""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import casd
from casd.utils.versions import software_versions, source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit, and beside its file an untracked package in which casd is said to be."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "__init__.py").write_text("")
    (tmp_path / "work.py").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "work.py")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(casd, "__file__", str(tmp_path / "venv" / "__init__.py"))
    source_commit.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def forget() -> object:
    yield
    source_commit.cache_clear()


def test_of_a_checkout(repository: Path) -> None:
    git(repository, "add", "venv")
    git(repository, "commit", "--quiet", "-m", "two")
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert software_versions()["casd_commit"] == commit
    (repository / "work.py").write_text("2")  # a page of results, say
    source_commit.cache_clear()
    assert source_commit() == commit
    (repository / "venv" / "__init__.py").write_text("2")
    source_commit.cache_clear()
    assert source_commit() == f"{commit}-dirty"


def test_of_an_installation_in_another_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        origin: str | None = None

        def read_text(self, name: str) -> str | None:
            return self.origin if name == "direct_url.json" else None

    monkeypatch.setattr(metadata, "distribution", lambda _: Installed())
    assert source_commit() == ""
    Installed.origin = '{"url": "https://example.org/casd", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}'
    source_commit.cache_clear()
    assert source_commit() == "abc123"


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    cited = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == casd.__version__ == software_versions()["casd"]
