"""`casd distance`: CASD between models, without a run."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

from casd.utils.errors import ConfigError
from casd.utils.sealed import CHECKSUMS
from casd.utils.text import printable


def add_distance(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the parser of `distance`; `add` returns the parser of a verb with a help text."""
    parser = add("distance", "CASD between any models of one shape: how differently they changed from BEFORE")
    model = "a folder, a hub id, a .gguf file, BASE+ADAPTER, or the folder of a peft adapter"
    parser.add_argument("before", metavar="BEFORE", help=f"the model from which changes are measured: {model}")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two or more models, each likewise")
    parser.add_argument(
        "--texts", required=True, metavar="FILE | CORPUS", help=".txt, .jsonl or .parquet, or a name of casd list corpus"
    )
    parser.add_argument(
        "--variant",
        default="casd",
        metavar="NAME",
        help="casd (default), casd_cos, or choices such as last/l2, attn_out/shifts",
    )
    parser.add_argument("--layers", metavar="N,N", help="indices of the layers; default: all")
    parser.add_argument("--per-layer", action="store_true", help="print and write the distance at each layer, too")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write (default: outputs/distance-…)")
    parser.add_argument("--dtype", default="float32", metavar="DTYPE", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, …")


def distance(options: argparse.Namespace) -> None:
    """Compute the distances, print their tables, and write their files.

    Raises:
        CasdError: models or texts that cannot be used, or a folder that cannot be written.
    """
    from casd.cli.quiet import quiet_libraries
    from casd.cli.report import short_path
    from casd.metric.distance import distance as compute
    from casd.report.distances import distance_tables, write_distances
    from casd.report.terminal import print_tables

    quiet_libraries()
    folder = options.output or _default_folder(options)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; name a folder to write to: --output FOLDER.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CHECKSUMS).is_file():
        raise ConfigError(
            f"{folder} is not empty and has no distances, which alone are written over; name a new or an empty folder:"
            " --output FOLDER."
        )
    found = compute(
        options.before,
        options.models,
        options.texts,
        variant=options.variant,
        layers=_layers(options.layers),
        dtype=options.dtype,
        device=options.device,
    )
    write_distances(found, folder, per_layer=options.per_layer)
    print_tables(distance_tables(found, per_layer=options.per_layer))
    print(printable(f"Written to {short_path(folder.absolute())}: CSV, JSON and a heat map (distances.png)."))


def _layers(text: str | None) -> list[int] | None:
    """Parse the indices of layers."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--layers is {text!r}; expected indices separated by commas, such as 0,5,11.") from error


def _default_folder(options: argparse.Namespace) -> Path:
    names = [options.before, *options.models, options.texts, options.variant, options.layers or ""]
    return Path("outputs") / f"distance-{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:8]}"
