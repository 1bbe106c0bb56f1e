"""The configuration groups and their options, which are the YAML files of `configs/`."""

from __future__ import annotations

from pathlib import Path

from casd.utils.errors import ConfigError

ROOT = "config"
DEFENCE_ROOT = "defend"
SCHEMA = "casd_schema"
"""The first of the defaults in `config.yaml`: the dataclasses of `casd.config`."""
SCALES = "reproduce"
"""The only folder of `configs/` that is no configuration group; see `casd.reproduction.scales`."""


def config_folder() -> Path:
    """Return the folder of the YAML files: that of the installed package, or else of the repository."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent.parent / "configs"):
        if (folder / f"{ROOT}.yaml").is_file():
            return folder
    raise ConfigError(f"No configs/ beside {package}; the installation is incomplete: install casd again.")


def own_folder() -> Path | None:
    """Return the folder `configs/` of the working directory, which is searched before that of the package.

    None if there is none, if it is that of the package, or if its config.yaml is that of another program.
    """
    own = Path("configs")
    if not own.is_dir() or own.samefile(config_folder()):
        return None
    root = own / f"{ROOT}.yaml"
    return None if root.is_file() and SCHEMA.encode() not in root.read_bytes() else own.absolute()


def groups() -> dict[str, dict[str, str]]:
    """Return the options of each configuration group with their descriptions."""
    found: dict[str, dict[str, str]] = {
        folder.name: {} for folder in sorted(config_folder().iterdir()) if folder.is_dir() and folder.name != SCALES
    }
    own = own_folder()
    for folder in (config_folder(), *([own] if own else [])):
        for group in found:
            found[group] |= {file.stem: description(file) for file in (folder / group).glob("*.yaml")}
    return {group: dict(sorted(options.items())) for group, options in found.items()}


def description(file: Path) -> str:
    """Return the first comment line of a YAML file, which describes it."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# ") and "@package" not in line:
            return line.removeprefix("# ")
    return ""
