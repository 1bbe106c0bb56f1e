"""The configuration groups and their options, which are the YAML files of `configs/`."""

from __future__ import annotations

from pathlib import Path

from casd.utils.errors import ConfigError

ROOT = "config"
SCALES = "reproduce"
"""The only folder of `configs/` that is no configuration group; see `casd.reproduction.scales`."""


def config_folder() -> Path:
    """Return the folder of the YAML files: that of the installed package, or else of the repository."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent.parent / "configs"):
        if (folder / f"{ROOT}.yaml").is_file():
            return folder
    raise ConfigError(f"No configs/ beside {package}; the installation is incomplete: install casd again.")


def groups() -> dict[str, dict[str, str]]:
    """Return the options of each configuration group with their descriptions."""
    return {
        folder.name: {file.stem: description(file) for file in sorted(folder.glob("*.yaml"))}
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir() and folder.name != SCALES
    }


def description(file: Path) -> str:
    """Return the first comment line of a YAML file, which describes it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and "@package" not in line:
            return line.removeprefix("# ")
    return ""
