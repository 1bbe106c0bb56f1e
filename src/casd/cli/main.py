"""The command line: verbs to Hydra overrides, errors to a line, and nothing else.

Nothing heavy is imported before it is known that it is needed: `casd --help` and `casd list` answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import casd
from casd.utils.distributed import is_main
from casd.utils.ending import orderly_end
from casd.utils.errors import CasdError
from casd.utils.text import printable

EPILOG = """\
OVERRIDE is Hydra's: group=option (model=qwen3_tiny), key=value (seed=1), backdoor=[french_a,refusal], +new.key=value.
sweep takes lists: seed=0,1,2 model=qwen3_tiny,llama3_tiny.

examples:
  casd sweep experiment=demo                       eight backdoors, two objectives, all controls, a report; minutes
  casd run unlearning=clean_target seed=1          one run
  casd sweep experiment=demo model=qwen3_tiny,llama3_tiny,gaperon_tiny
  casd report outputs                              one report over every finished run below a folder
  casd compare outputs/demo/A outputs/demo/B       two runs side by side: what was set otherwise, what came out
  casd list model                                  the options of a group
"""

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
RUN_VERBS = {
    "run": ("report", "everything: inject, unlearn, measure, score, report"),
    "inject": ("inject", "up to the injected model"),
    "unlearn": ("unlearn", "up to the removed models, whose weights are then kept"),
    "activations": ("activations", "up to the activation statistics of every state"),
    "evaluate": ("evaluate", "up to the attack success rates of every state"),
    "score": ("score", "up to transfer, CASD and their relation"),
}


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it does not know as it was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the verbs; overrides are left to Hydra."""
    parser = _Parser(prog="casd", description=casd.__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"casd {casd.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (_, text) in RUN_VERBS.items():
        verbs.add_parser(verb, help=text).add_argument("overrides", nargs="*", metavar="OVERRIDE")
    report = verbs.add_parser("report", help="tables and figures over finished runs; with overrides the same as run")
    report.add_argument(
        "arguments",
        nargs="*",
        metavar="PATH | OVERRIDE",
        help="paths: runs, folders with runs below them, or stores (outputs/store); all of them go into one report",
    )
    report.add_argument("--output", type=Path, metavar="FOLDER", help="of the report over PATHs (default: outputs/report-…)")
    sweep = verbs.add_parser("sweep", help="every combination of lists of overrides, and one report over all")
    sweep.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    planning = verbs.add_parser("plan", help="what a run or a sweep will take: memory, tokens, FLOPs, time, disk; runs nothing")
    planning.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    reproduce = verbs.add_parser(
        "reproduce", help="a table or figure of the paper with its runs and its claims; or all of them"
    )
    reproduce.add_argument(
        "arguments",
        nargs="+",
        metavar="NAME | scale=SCALE | runtime.KEY=VALUE",
        help="`casd list reproduce` shows the names and the scales (default: tiny)",
    )
    compare = verbs.add_parser("compare", help="two finished runs side by side: what was set otherwise, what came out")
    compare.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    listing = verbs.add_parser("list", help="the configuration groups and their options")
    listing.add_argument("group", nargs="?", metavar="GROUP")
    status = verbs.add_parser("status", help="the finished and interrupted stages of a store")
    status.add_argument("store", nargs="?", default="outputs/store", metavar="STORE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 1 after an error of the user's or of the machine, with 130 after Ctrl-C, with 143 after SIGTERM, and with 141 if
    the reader of its output is gone (`casd list | head`), as the shell reports it of other programs.
    """
    _open_closed_streams()
    try:
        with orderly_end():
            try:
                _dispatch(build_parser().parse_args(arguments))
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # here, where an error is told
    except CasdError as error:
        _fail(str(error))
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except Exception as error:
        _fail_of_machine(error)


def _dispatch(options: argparse.Namespace) -> None:
    """Run the verb."""
    if options.verb == "list":
        _list(options.group)
    elif options.verb == "status":
        _status(Path(options.store))
    elif options.verb == "sweep":
        _sweep(options.overrides)
    elif options.verb == "plan":
        _plan(options.overrides)
    elif options.verb == "reproduce":
        _reproduce(options.arguments)
    elif options.verb == "report":
        _report(options.arguments, options.output)
    elif options.verb == "compare":
        _compare(*options.runs)
    else:
        _run(RUN_VERBS[options.verb][0], options.overrides)


def _fail(line: str) -> None:
    """Say what was wrong, and exit with 1."""
    if is_main():
        print(printable(f"casd: {line}"), file=sys.stderr)
    sys.exit(1)


def _fail_of_machine(error: Exception) -> None:
    """Say what the operating system refused, and exit with 1; other errors are bugs and are raised."""
    from casd.utils.disk import told

    # Files are written where such errors are told with the file's folder. This one is of /dev/full, or of `casd … > file`.
    if isinstance(error, OSError) and error.filename is None and error.errno in _OF_OUTPUT:
        _drop_output()
        _fail(f"The output cannot be written: {error.strerror}.")
    if line := told(error):
        _fail(line)
    raise error


def _drop_output() -> None:
    """Send what is left of the output nowhere, so that the interpreter does not fail to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_closed_streams() -> None:
    """Where stdin, stdout or stderr was closed by the caller, open it to nowhere: the next file would get its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
            setattr(sys, name, open(number, mode))  # noqa: PTH123, SIM115


def _run(end: str, overrides: Sequence[str]) -> None:
    from casd.cli.session import run
    from casd.config.compose import load_config

    run(load_config(overrides), end)


def _report(arguments: Sequence[str], output: Path | None) -> None:
    from casd.utils.errors import ConfigError

    # Hydra's overrides have an "=", or take something away ("~group").
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if paths and overrides:
        raise ConfigError(
            f"report takes the paths of finished runs or the overrides of one to make, not both: {paths[0]} is a path,"
            f" {overrides[0]} an override."
        )
    if paths:
        from casd.cli.session import report_runs

        report_runs(paths, output)
    elif output:
        raise ConfigError("--output is for a report over finished runs: name their paths. A run has runtime.output=FOLDER.")
    else:
        _run("report", overrides)


def _compare(a: Path, b: Path) -> None:
    from casd.cli.compare import print_two_runs, read_two_runs

    print_two_runs(*read_two_runs(a, b))


def _sweep(overrides: Sequence[str]) -> None:
    from casd.cli.session import sweep

    sweep(overrides)


def _plan(overrides: Sequence[str]) -> None:
    from casd.cli.session import plan

    plan(overrides)


def _reproduce(arguments: Sequence[str]) -> None:
    from casd.cli.session import reproduce
    from casd.utils.errors import ConfigError

    names = [argument for argument in arguments if "=" not in argument]
    scales = [argument.removeprefix("scale=") for argument in arguments if argument.startswith("scale=")]
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("scale=")]
    if not names:
        raise ConfigError("reproduce needs the name of a table or figure, or all; casd list reproduce shows them.")
    if len(scales) > 1:
        raise ConfigError(f"reproduce has one scale at a time; given were {', '.join(scales)}.")
    reproduce(names, scales[0] if scales else "tiny", overrides)


def _list(group: str | None) -> None:
    from casd.config.options import groups
    from casd.utils.registry import unknown

    every = groups() | _reproductions()
    if group is not None and group not in every:
        raise unknown("group", group, every)
    for name in [group] if group else every:
        print(printable(name))
        width = max(map(len, every[name]), default=0)
        for option, description in every[name].items():
            print(printable(f"  {option:<{width}}  {description}".rstrip()))


def _reproductions() -> dict[str, dict[str, str]]:
    """What `casd reproduce` takes, as a group: the names with their sets of runs, the scales with what they need."""
    from casd.reproduction.catalogue import EXHIBITS
    from casd.reproduction.scales import scales

    names = {name: f"{each.title} (runs: {each.run_set})" for name, each in EXHIBITS.items()}
    return {"reproduce": {"all": "all of these"} | names | {f"scale={name}": text for name, text in scales().items()}}


def _status(root: Path) -> None:
    from casd.pipeline.status import status

    print(printable(status(root)))


if __name__ == "__main__":
    main()
