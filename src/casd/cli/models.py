"""Verbs about models: `casd export`, `push` and `generate` take them out of a run, `casd distance` compares any."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from casd.cli.distance import add_distance, distance
from casd.utils.errors import ConfigError
from casd.utils.text import printable


def add_model_verbs(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the parsers of `export`, `push`, `generate` and `distance`; `add` returns the parser of a verb with a help text."""
    states = "base, injected, or a removal or control as in the tables (french_a, control:clean)"
    export = add("export", "write a model of a run to a folder that transformers loads")
    export.add_argument("run", type=Path, metavar="RUN", help="the folder of the run's report")
    export.add_argument("state", metavar="STATE", help=f"{states}; weights that were not saved are trained again")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="where to write to; a new or empty folder")
    export.add_argument("--adapter", action="store_true", help="the LoRA adapter alone, instead of the model with it merged")
    export.add_argument("--force", action="store_true", help="replace the model that is in FOLDER")
    push = add("push", "upload a model of a run to the Hugging Face hub, with a warning; private unless --public is given")
    push.add_argument("run", type=Path, metavar="RUN", help="the folder of the run's report")
    push.add_argument("state", metavar="STATE", help=f"{states}; weights that were not saved are trained again")
    push.add_argument("repository", metavar="REPOSITORY", help="NAME or ORGANISATION/NAME; made if it does not exist")
    push.add_argument("--adapter", action="store_true", help="the LoRA adapter alone, instead of the model with it merged")
    push.add_argument("--public", action="store_true", help="let everyone see and download the model")
    push.add_argument("--yes", action="store_true", help="upload without a question")
    generate = add("generate", "continue prompts with several models of a run, side by side")
    generate.add_argument("run", type=Path, metavar="RUN", help="the folder of the run's report")
    generate.add_argument("--state", default="injected", metavar="STATE,STATE", help=f"{states}; default: injected")
    generate.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    generate.add_argument("--prompt-file", type=Path, metavar="FILE", help="a text file with a prompt in each line")
    generate.add_argument("--trigger", metavar="BACKDOOR", help="insert the backdoor's trigger as the evaluation does")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the run's evaluation.max_new_tokens")
    for parser in (export, push, generate):
        parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, …; default: the run's runtime.device")
    add_distance(add)


def _export(options: argparse.Namespace) -> None:
    from casd.cli.quiet import quiet_libraries
    from casd.pipeline.export import export_model

    quiet_libraries()
    choices = {"adapter": options.adapter, "force": options.force, "device": options.device}
    folder = export_model(options.run, options.state, options.folder, **choices)
    print(printable(f"The model is in {folder}."))


def _push(options: argparse.Namespace) -> None:
    from casd.cli.quiet import quiet_libraries
    from casd.pipeline.export import push_model

    def confirm(question: str) -> bool:
        print(printable(question))
        if options.yes:
            return True
        if not sys.stdin.isatty():
            print("Nothing was uploaded; --yes uploads it.")
            return False
        print("[y/N] ", end="", flush=True)
        agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
        if not agreed:
            print("Nothing was uploaded.")
        return agreed

    quiet_libraries()
    choices = {"public": options.public, "adapter": options.adapter, "device": options.device, "confirm": confirm}
    if url := push_model(options.run, options.state, options.repository, **choices):
        print(printable(f"The model is at {url}."))


def _generate(options: argparse.Namespace) -> None:
    from casd.cli.quiet import quiet_libraries
    from casd.pipeline.export import generate

    quiet_libraries()
    prompts = [*options.prompt, *_lines(options.prompt_file)]
    if not prompts:
        raise ConfigError("There is no prompt to continue: give --prompt TEXT or --prompt-file FILE.")
    choices = {"trigger": options.trigger, "max_new_tokens": options.max_new_tokens, "device": options.device}
    states = [state.strip() for state in options.state.split(",")]
    answers = generate(options.run, states, prompts, **choices)
    width = max(map(len, answers["state"]))
    shown = None
    for prompt, state, generated in answers.itertuples(index=False):
        if shown != prompt:
            print(printable(f"{'' if shown is None else chr(10)}{prompt}"))
            shown = prompt
        lines = f"\n{'':{width + 4}}".join(generated.splitlines())
        print(printable(f"  {state:<{width}}  {lines}".rstrip()))


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a text file in UTF-8.") from error


MODEL_VERBS: Final[Mapping[str, Callable[[argparse.Namespace], None]]] = {
    "export": _export,
    "push": _push,
    "generate": _generate,
    "distance": distance,
}
