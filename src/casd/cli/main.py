"""The command line: parse the arguments, call the verb, and print errors in one line.

Heavy modules are imported by the verbs that need them, so that `casd --help` and `casd list` answer at once.
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
from casd.cli.help import VERBS, check_options, epilog
from casd.cli.models import MODEL_VERBS, add_model_verbs
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
  casd compare outputs/demo/A outputs/demo/B       configuration differences and results of two runs
  casd export outputs/demo/A french_a my-model     the model after a removal, as a folder for transformers
  casd distance my-base model-a model-b --texts texts.txt    CASD between any models
  casd list model                                  the options of a group; casd VERB --help has an example of each verb
"""

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
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
    for each in (sweep, planning, show):
        each.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    reproduce = add("reproduce", "make the runs of a table or figure of the paper (or all), and check its claims")
    reproduce.add_argument(
        "arguments",
        nargs="+",
        metavar="NAME | scale=SCALE | runtime.KEY=VALUE",
        help="`casd list reproduce` shows the names and the scales",
    )
    for each in (verbs.choices["run"], report, sweep, reproduce):
        each.add_argument("-v", "--verbose", action="store_true", help="print all tables at the end, not only the main ones")
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
    completion = add(
        "completion", "a script to append to ~/.bashrc or ~/.zshrc, which completes verbs, groups, options and keys"
    )
    completion.add_argument(
        "shell",
        choices=("bash", "zsh", "fish", "words"),
        metavar="bash | zsh | fish",
        help="fish: > ~/.config/fish/completions/casd.fish",
    )
    completion.add_argument("line", nargs="?", default="", help=argparse.SUPPRESS)
    status.add_argument("--all", action="store_true", help="every stage instead of the runs")
    cleaning.add_argument("--yes", action="store_true", help="remove without a question")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 1 after an error of the user or of the machine, with 130 after Ctrl-C, with 143 after SIGTERM, and with 141 if
    the reader of its output is gone (`casd list | head`), as other programs do.
    """
    _open_closed_streams()
    try:
        with orderly_end():
            try:
                check_options(sys.argv[1:] if arguments is None else arguments)
                _dispatch(build_parser().parse_args(arguments))
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # inside the block that reports errors
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
    elif options.verb == "completion":
        _complete(options.shell, options.line)
    elif options.verb == "status":
        from casd.pipeline.status import find_store, status, status_of_runs

        store = find_store(options.store)
        print(printable(status(store) if options.all else status_of_runs(store)))
    elif options.verb == "clean":
        from casd.cli.clean import clean

        clean(options.store, yes=options.yes)
    elif getattr(options, "detach", False):
        from casd.cli.detach import detach

        detach(options.verb, options.overrides)
    elif options.verb == "sweep":
        from casd.cli.sweep import sweep

        sweep(options.overrides, verbose=options.verbose)
    elif options.verb == "plan":
        from casd.cli.planning import plan

        plan(options.overrides)
    elif options.verb == "show":
        from casd.cli.run import show

        show(options.overrides)
    elif options.verb == "reproduce":
        _reproduce(options.arguments, options.verbose)
    elif options.verb == "report":
        _report(options.arguments, options.output, options.verbose)
    elif options.verb in MODEL_VERBS:
        MODEL_VERBS[options.verb](options)
    elif options.verb == "compare":
        from casd.cli.compare import print_two_runs, read_two_runs

        print_two_runs(*read_two_runs(*options.runs))
    else:
        from casd.cli.run import run

        run(options.overrides, RUN_VERBS[options.verb][0], verbose=getattr(options, "verbose", False))


def _fail(line: str) -> None:
    """Print an error in one line, and exit with 1."""
    if is_main():
        print(printable(f"casd: {line}"), file=sys.stderr)
    sys.exit(1)


def _fail_of_machine(error: Exception) -> None:
    """Print an error of the operating system in one line, and exit with 1. Other errors are bugs and are raised again."""
    from casd.utils.disk import told

    # Errors in writing files name the file. This one comes from stdout: `casd … > file` on a full disk, or /dev/full.
    if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
        _drop_output()
        _fail(f"The output cannot be written: {error.strerror}.")
    if line := told(error):
        _fail(line)
    raise error


def _drop_output() -> None:
    """Redirect stdout to the null device, so that the interpreter does not fail to flush it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_closed_streams() -> None:
    """Open stdin, stdout or stderr on the null device if the caller closed it: the next file would get its descriptor."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
            setattr(sys, name, open(number, mode))  # noqa: PTH123, SIM115


def _report(arguments: Sequence[str], output: Path | None, verbose: bool) -> None:
    from casd.utils.errors import ConfigError

    # An override has an "=", or removes something ("~group").
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if paths and overrides:
        raise ConfigError(
            f"report takes either the paths of finished runs or the overrides of a run to make, not both: {paths[0]} is a path,"
            f" {overrides[0]} an override."
        )
    if paths:
        from casd.cli.report import report_runs

        report_runs(paths, output, verbose=verbose)
    elif output:
        raise ConfigError("--output needs the paths of finished runs: name their paths. A run has runtime.output=FOLDER.")
    else:
        from casd.cli.run import run

        run(overrides, verbose=verbose)


def _reproduce(arguments: Sequence[str], verbose: bool) -> None:
    from casd.cli.reproduce import reproduce
    from casd.utils.errors import ConfigError

    names = [argument for argument in arguments if "=" not in argument]
    scales = [argument.removeprefix("scale=") for argument in arguments if argument.startswith("scale=")]
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("scale=")]
    if not names:
        raise ConfigError("reproduce needs the name of a table or figure, or all; casd list reproduce shows the names.")
    if len(scales) > 1:
        raise ConfigError(f"reproduce takes one scale at a time; given were {', '.join(scales)}.")
    reproduce(names, scales[0] if scales else "tiny", overrides, verbose=verbose)


def _list(group: str | None) -> None:
    from casd.config.options import groups
    from casd.utils.registry import unknown

    all_groups = groups() | _reproductions()
    if group is not None and group not in all_groups:
        raise unknown("group", group, all_groups)
    for name in [group] if group else all_groups:
        print(printable(name))
        width = max(map(len, all_groups[name]), default=0)
        for option, description in all_groups[name].items():
            print(printable(f"  {option:<{width}}  {description}".rstrip()))


def _complete(shell: str, line: str) -> None:
    from casd.cli.completion import SCRIPTS, words
    from casd.config.options import groups

    if shell in SCRIPTS:
        print(SCRIPTS[shell], end="")
        return
    choices = {name: list(options) for name, options in (groups() | _reproductions()).items()}
    overrides = (*RUN_VERBS, "sweep", "plan", "show", "report")
    for word in words(line, VERBS, overrides, choices):
        print(printable(word))


def _reproductions() -> dict[str, dict[str, str]]:
    """Return what `casd reproduce` takes, as a group: the exhibits with their sets of runs, and the scales."""
    from casd.reproduction.catalogue import EXHIBITS
    from casd.reproduction.scales import scales

    names = {name: f"{exhibit.title} (runs: {exhibit.run_set})" for name, exhibit in EXHIBITS.items()}
    return {"reproduce": {"all": "all of these"} | names | {f"scale={name}": text for name, text in scales().items()}}


if __name__ == "__main__":
    main()
