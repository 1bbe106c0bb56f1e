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

from casd.cli.help import VERBS, check_options
from casd.cli.models import MODEL_VERBS
from casd.cli.parser import RUN_VERBS, build_parser
from casd.utils.distributed import is_main
from casd.utils.ending import orderly_end
from casd.utils.errors import CasdError
from casd.utils.text import printable

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


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

        if getattr(options, "publish", None):
            _fail("--publish needs the results: give the same command without --detach when its job is finished.")
        detach(options.verb, options.overrides)
    elif options.verb == "sweep":
        from casd.cli.sweep import sweep

        sweep(options.overrides, verbose=options.verbose, published=options.publish)
    elif options.verb == "defend":
        from casd.cli.defend import defend

        defend(options.overrides, options.publish)
    elif options.verb == "plan":
        from casd.cli.planning import plan

        plan(options.overrides)
    elif options.verb == "show":
        from casd.cli.run import show

        show(options.overrides)
    elif options.verb == "reproduce":
        _reproduce(options.arguments, options.verbose, options.publish)
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


def _reproduce(arguments: Sequence[str], verbose: bool, published: Path | None) -> None:
    from casd.cli.reproduce import reproduce
    from casd.utils.errors import ConfigError

    names = [argument for argument in arguments if "=" not in argument]
    scales = [argument.removeprefix("scale=") for argument in arguments if argument.startswith("scale=")]
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("scale=")]
    if not names:
        raise ConfigError("reproduce needs the name of a table or figure, or all; casd list reproduce shows the names.")
    if len(scales) > 1:
        raise ConfigError(f"reproduce takes one scale at a time; given were {', '.join(scales)}.")
    reproduce(names, scales[0] if scales else "tiny", overrides, verbose=verbose, published=published)


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
    overrides = (*RUN_VERBS, "sweep", "defend", "plan", "show", "report")
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
