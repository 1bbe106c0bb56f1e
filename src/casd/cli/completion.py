"""`casd completion`: verbs, groups, options and keys, completed by the shell.

At each TAB the shell calls `casd completion words LINE`, where LINE is the command line up to the cursor. That imports neither
torch nor Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from casd.config.keys import schema_paths

_BASH: Final = r"""_casd() {
    local line=${COMP_LINE:0:$COMP_POINT} found
    local word=${line##*[[:space:]]}
    COMPREPLY=()
    while IFS= read -r found; do
        [[ $found == *[=.] || $word == *\[* ]] && compopt -o nospace 2>/dev/null
        # readline takes what follows "=" for a word of its own
        [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && found=${found#"${word%"${word##*=}"}"}
        COMPREPLY+=("$found")
    done < <(casd completion words "$line" 2>/dev/null)
}
complete -o default -F _casd casd
"""
SCRIPTS: Final = {
    "bash": _BASH,
    "zsh": f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{_BASH}",
    "fish": "complete -c casd -a '(casd completion words (commandline -cp))'\n",
}
"""What `eval "$(casd completion bash)"` defines, by shell."""


def words(line: str, verbs: Iterable[str], takes_overrides: Iterable[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what the last word of a command line can become.

    Args:
        line: the command line up to the cursor.
        verbs: the verbs.
        takes_overrides: those that take overrides.
        groups: the options of each group, with those of "reproduce".
    """
    *before, word = re.split(r"\s+", line)
    if len(before) <= 1:
        found: Iterable[str] = verbs
    elif before[1] == "list":
        found = groups
    elif before[1] == "completion":
        found = SCRIPTS
    elif before[1] == "reproduce":
        found = groups["reproduce"]
    elif before[1] in takes_overrides:
        found = _overrides(word, {name: options for name, options in groups.items() if name != "reproduce"})
    else:
        found = []
    return sorted(each for each in found if each.startswith(word))


def _overrides(word: str, groups: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Return the options of the group before the "=", else the groups and the next parts of the keys that begin like `word`."""
    group, equals, values = word.partition("=")
    if equals:
        start = word[: len(word) - len(re.split(r"[\[,]", values)[-1])]
        return (f"{start}{option}" for option in groups.get(group, ()))
    keys = (path for path in schema_paths() if path.startswith(word) and "NAME" not in path)
    parts = {re.match(rf"{re.escape(word)}[^.]*\.?", key)[0] for key in keys}  # type: ignore[index]
    return {*(f"{name}=" for name in groups), *(part if part.endswith(".") else f"{part}=" for part in parts)}
