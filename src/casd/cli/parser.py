"""The verbs of the command line and their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import casd
from casd.cli.help import epilog
from casd.cli.models import add_model_verbs
from casd.utils.text import printable

EPILOG = """\
OVERRIDE is Hydra's: group=option (model=qwen3_tiny), key=value (seed=1), backdoor=[french_a,refusal], +new.key=value.
sweep takes lists: seed=0,1,2 model=qwen3_tiny,llama3_tiny.

examples:
  casd sweep experiment=demo                       eight backdoors, two objectives, two controls, a report; minutes
  casd run unlearning=clean_target seed=1          one run
  casd sweep experiment=demo model=qwen3_tiny,llama3_tiny,gaperon_tiny
  casd report outputs                              one report over every finished run below a folder
  casd compare outputs/demo/A outputs/demo/B       configuration differences and results of two runs
  casd export outputs/demo/A french_a my-model     the model after a removal, as a folder for transformers
  casd defend experiment=defender_demo             an attacker's backdoors, sealed, and a defender who does not know them
  casd distance my-base model-a model-b --texts texts.txt    CASD between any models
  casd list model                                  the options of a group; casd VERB --help has an example of each verb
"""


RUN_VERBS = {
    "run": ("report", "everything: inject, unlearn, measure, score, report"),
    "inject": ("inject", "up to the injected model"),
    "unlearn": ("unlearn", "up to the removals, whose weights are then kept"),
    "activations": ("activations", "up to the activation statistics of every state of the model"),
    "evaluate": ("evaluate", "up to the attack success rates of every state of the model"),
    "score": ("score", "up to transfer, CASD and their relation"),
}


class _Parser(argparse.ArgumentParser):
    """Escape control characters in the error messages of argparse, which repeat arguments as they were typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the verbs. Overrides are left to Hydra."""
    parser = _Parser(
        prog="casd",
        description=str(casd.__doc__).partition("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"casd {casd.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(verb: str, text: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        return verbs.add_parser(verb, help=text, description=text, epilog=epilog(verb), formatter_class=raw)

    for verb, (_, text) in RUN_VERBS.items():
        add(verb, text).add_argument("overrides", nargs="*", metavar="OVERRIDE")
    report = add("report", "tables and figures over finished runs; with overrides instead of paths, as `casd run`")
    report.add_argument(
        "arguments",
        nargs="*",
        metavar="PATH | OVERRIDE",
        help="runs, folders with runs below them, or stores (outputs/store); all go into one report",
    )
    report.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write the report over PATHs (default: outputs/report-…)"
    )
    sweep = add("sweep", "every combination of the listed values, and one report over all runs")
    planning = add("plan", "estimate memory, tokens, FLOPs, time and disk of a run or a sweep; runs nothing")
    show = add("show", "the composed configuration of a run as YAML, after the checks of a run; runs nothing")
    defending = add("defend", "plant backdoors of one's own in a model, remove some, and see what is left of an attacker's")
    for each in (sweep, planning, show, defending):
        each.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    reproduce = add("reproduce", "make the runs of a table or figure (or all) that tests claims of the paper, and decide these")
    reproduce.add_argument(
        "arguments",
        nargs="+",
        metavar="NAME | scale=SCALE | runtime.KEY=VALUE",
        help="`casd list reproduce` shows the names and the scales",
    )
    for each in (verbs.choices["run"], report, sweep, reproduce):
        each.add_argument("-v", "--verbose", action="store_true", help="print all tables at the end, not only the main ones")
    for each in (sweep, defending, reproduce):
        each.add_argument(
            "--publish",
            type=Path,
            metavar="FOLDER",
            help="put what is found into FOLDER/RESULTS.md, with its tables as CSV files",
        )
    for each in (verbs.choices["run"], sweep):
        each.add_argument("--detach", action="store_true", help="with engine=slurm: run this command as a job, too")
    compare = add("compare", "configuration differences and results of two finished runs")
    compare.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    add_model_verbs(add)
    listing = add("list", "the configuration groups and their options")
    listing.add_argument("group", nargs="?", metavar="GROUP")
    status = add("status", "the runs in a store: how far each is, its size, and what went wrong")
    cleaning = add("clean", "remove abandoned checkpoints, interrupted stages, and stages that only deleted runs asked for")
    for either in (status, cleaning):
        either.add_argument(
            "store", nargs="?", default="outputs/store", type=Path, metavar="STORE", help="a store, or a folder above it"
        )
    completion = add("completion", "print a script with which the shell completes verbs, groups, options and keys")
    completion.add_argument(
        "shell",
        choices=("bash", "zsh", "fish", "words"),
        metavar="bash | zsh | fish",
        help="the script's place: bash >> ~/.bashrc, zsh >> ~/.zshrc, fish > ~/.config/fish/completions/casd.fish",
    )
    completion.add_argument("line", nargs="?", default="", help=argparse.SUPPRESS)
    status.add_argument("--all", action="store_true", help="every stage instead of the runs")
    cleaning.add_argument("--yes", action="store_true", help="remove without a question")
    return parser
