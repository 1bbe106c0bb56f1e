"""The versions of the software that made a result."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import casd


def software_versions() -> dict[str, str]:
    """Return the versions that may affect a result, from the installed packages' metadata without importing them."""
    versions = {"python": platform.python_version(), "casd": casd.__version__}
    if commit := source_commit():
        versions["casd_commit"] = commit
    for package in ("torch", "transformers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def source_commit() -> str:
    """Return the git commit of the running code, followed by "-dirty" if tracked files of the package were changed.

    It is read from the checkout that the package is in, or, for a package that pip installed from a repository, from the record
    that pip keeps (PEP 610). "" if neither is known, as for a wheel.
    """
    package = Path(casd.__file__).parent
    if _git(package, "ls-files", "__init__.py"):  # not a repository around an environment in which casd is installed
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(package, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    try:
        origin = metadata.distribution("casd").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    return str(json.loads(origin or "{}").get("vcs_info", {}).get("commit_id", ""))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow network disk
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
