"""Completion in the shell: what a command line can become, and that bash, zsh and fish ask for it.

Run: pytest tests/test_completion.py   (shells that are not installed are skipped)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from casd.cli.main import main

LINES = [
    ("casd ru", {"run"}),
    ("casd st", {"status"}),
    ("casd run unlearning=n", {"unlearning=npo"}),
    ("casd sweep model=qwen3_tiny,gaperon_t", {"model=qwen3_tiny,gaperon_tiny"}),
    ("casd run backdoor=[french_a,ger", {"backdoor=[french_a,german", "backdoor=[french_a,german_cyrillic"}),
    ("casd run experiment=smok", {"experiment=smoke"}),
    ("casd plan  seed=1 inj", {"injection.", "injection="}),
    ("casd run runtime.de", {"runtime.device=", "runtime.devices="}),
    ("casd show see", {"seed="}),
    ("casd list wei", {"weights"}),
    ("casd reproduce scale=ti", {"scale=tiny"}),
    ("casd status out", set()),
    ("casd frob x", set()),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line for line, _ in LINES])
def test_what_a_line_can_become(line: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "words", line])
    assert set(capsys.readouterr().out.split()) == expected


def test_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "hydra", "omegaconf", "pandas", "numpy", "scipy", "matplotlib", "rich")
    code = (
        "import sys\nfrom casd.cli.main import main\nmain(['completion', 'words', 'casd run model='])\n"
        f"sys.exit(', '.join(name for name in {heavy!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model=hub\n" in done.stdout


def in_shell(shell: str, script: str, folder: Path) -> str:
    """What a script prints in a shell that has run the output of `casd completion`."""
    if not (program := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    (folder / "casd").write_text(f'#!/bin/sh\nexec {sys.executable} -m casd "$@"\n')
    (folder / "casd").chmod(0o755)
    done = subprocess.run([program, "-c", script], env=environment(folder), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


BASH = """
eval "$(casd completion {shell})"
COMP_LINE="{line}rest" COMP_POINT={point}
_casd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_bash_takes_what_follows_the_equals_sign_for_the_word_and_zsh_does_not(shell: str, tmp_path: Path) -> None:
    for line, word in (("casd run backdoor=[french_a,fixed_text_", "[french_a,fixed_text_cyrillic"), ("casd run see", "seed=")):
        script = BASH.format(shell=shell, line=line, point=len(line))
        whole = f"backdoor={word}" if shell == "zsh" and "[" in word else word
        assert in_shell(shell, script, tmp_path).splitlines() == [whole]


def test_fish(tmp_path: Path) -> None:
    script = "casd completion fish | source; complete -C 'casd run unlearning=n'"
    assert "unlearning=npo" in in_shell("fish", script, tmp_path).split()
