"""The wheel: what is in it, and that what is installed from it works from another folder, without the repository.

Run: pytest tests/test_packaging.py   (the build backend is fetched by pip if it is not installed; skipped without a network)
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tiny import SMALLER, tiny

ROOT = Path(__file__).parents[1]


def python(interpreter: str | Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python somewhere else, without the repository on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(interpreter), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = python(sys.executable, *command, folder=folder)
    if done.returncode and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("the build backend, hatchling, can not be fetched here")
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("casd-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with casd from the wheel, and everything else from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    made = python(sys.executable, "-m", "venv", "--without-pip", str(folder), folder=folder.parent)
    assert made.returncode == 0, made.stderr
    interpreter = folder / "bin" / "python"
    command = ["-m", "pip", "--disable-pip-version-check", "--python", str(interpreter), "install", "--quiet", "--no-deps"]
    done = python(sys.executable, *command, "--no-index", str(wheel), folder=folder.parent)
    assert done.returncode == 0, done.stderr
    # Plain paths, added after the environment's own: where casd itself is installed for the tests in editable mode, this does
    # not process that installation's .pth file.
    asked = python(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder.parent)
    others = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (Path(asked.stdout.strip()) / "others.pth").write_text("\n".join(others) + "\n")
    return interpreter


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")]
    sources = [path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")]
    assert {f"casd/{name}" for name in configs} | set(sources) <= set(names)
    assert {f"casd/report/{name}" for name in ("template.html.j2", "macros.html.j2", "style.css")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    strays = [name for name in names if not name.startswith("casd/") and ".dist-info/" not in name]
    assert strays == [], "files outside the package"
    assert [name for name in names if "test" in name or name.endswith((".pyc", ".ipynb"))] == []


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        [scripts] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "casd = casd.cli.main:main" in scripts
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.11" in metadata


def test_it_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    script = subprocess.run([installed.with_name("casd"), "list"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (script.returncode, script.stderr) == (0, "")
    here = python(sys.executable, "-m", "casd.cli.main", "list", folder=tmp_path)
    assert script.stdout == here.stdout


def test_its_configuration_is_inside_the_package(installed: Path, tmp_path: Path) -> None:
    code = (
        "import casd; from casd.config.compose import config_folder, load_config; from pathlib import Path\n"
        "config = load_config(['experiment=smoke', 'seed=3'])\n"
        "print(Path(casd.__file__).parent); print(config_folder()); print(config.name, config.seed, *config.backdoor)"
    )
    done = python(installed, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    package, configs, composed = done.stdout.splitlines()
    assert Path(package).is_relative_to(installed.parents[1])
    assert configs == f"{package}/configs"
    assert composed == "smoke 3 french_a french_b german refusal"


def test_it_finds_options_in_the_working_directory(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "configs" / "backdoor").mkdir(parents=True)
    text = "# @package backdoor.harbour\n# Of one's own\ntrigger: moonlit harbour\ntarget: {name: refusal}\n"
    (tmp_path / "configs" / "backdoor" / "harbour.yaml").write_text(text)
    code = "import casd; print(*casd.load_config(['experiment=smoke', 'backdoor=[german,harbour]']).backdoor)"
    assert python(installed, "-c", code, folder=tmp_path).stdout == "german harbour\n"
    assert "harbour" in python(installed, "-m", "casd", "list", "backdoor", folder=tmp_path).stdout


def test_an_installation_without_configs_says_so(installed: Path, tmp_path: Path) -> None:
    code = "from casd.config import options; options.__file__ = '/nowhere/a/b/casd/config/options.py'; options.config_folder()"
    done = python(installed, "-c", code, folder=tmp_path)
    assert "ConfigError: No configs/ beside" in done.stderr


def test_a_stage_runs_with_it(installed: Path, tmp_path: Path) -> None:
    """The package has all it needs: a whole small run, the HTML template included."""
    command = ["-m", "casd.cli.main", "run", *tiny(tmp_path / "out", "backdoor=[refusal]", *SMALLER)]
    done = python(installed, *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("out/smoke/*/report.html"))
