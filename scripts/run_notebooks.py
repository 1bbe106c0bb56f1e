"""Execute the notebooks and store them with their figures, since GitHub shows stored outputs.

Run: .venv/bin/python scripts/run_notebooks.py              (some minutes; before a commit that changes what a notebook shows)
     .venv/bin/python scripts/run_notebooks.py quickstart   (this one alone)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def main() -> None:
    """Execute each notebook in an empty folder; a cell that fails ends the script."""
    paths = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(paths)}; default: all")
    names = parser.parse_args().names or paths
    if unknown := [name for name in names if name not in paths]:
        parser.error(f"unknown notebook: {', '.join(unknown)}; expected some of {', '.join(paths)}")
    for path in [paths[name] for name in names]:
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
        notebook.metadata.language_info = {"name": "python"}
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which differ at every run
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
