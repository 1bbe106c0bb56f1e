"""A seeded generator of configurations and model folders in which one thing is wrong, or at least odd.

Not run by itself: see test_bad_configurations.py.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUGE = "x" * 100_000
NUMBERS = [
    *(-1, 0, -(2**63), 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**23, 10**400),
    *(0.5, -0.5, 1e-320, 1e12, 1e23, 1e30, 1e308, math.nan, math.inf, -math.inf),
    *(True, None, "abc", "", "1e12", [], [1], [[1]], {}, {"a": 1}),
]
TEXTS = [
    *("", " ", "a|b", "x" * 300, HUGE, "\x00", "a\nb", "\x1b[31mred", "\u202eabc", "\ud800", "é" * 200),
    *("../../up", "/etc/passwd", "/" + "a/" * 3000, "~nobody/x", ".", "..", "a/b", "-rf", "a b", "名前", "nul\x00byte.gguf"),
    *("${seed}", "${nope}", "???", "%s{}", "null", "pypi:this.x/y.gguf", "pypi:__main__/y.gguf", "pypi:../x/y.gguf"),
    *(1, True, None, math.nan, [], ["a"], [["a"]], {}, {"a": {"b": 1}}),
]
LISTS = [
    *([[]], [["a"]], [None], [1], [math.nan], ["x" * 300], [HUGE], ["\x00"], ["a", "a"], ["a|b"], [{}], []),
    *("x", 1, None, {}, {"a": 1}, [[["deep"]]], ["last", "last"], ["../x"]),
]
MAPPINGS = [
    *(None, [], 1, "x", {"\x00": 1}, {"a|b": {}}, {"x" * 300: {}}, {1: 2}, {"": {}}, {"a": None}, {"a": []}, {"a": [[]]}),
    *({"a": {"layers": [10**9]}}, {"a": {"layers": [[0]]}}, {"learning_rate": [math.nan]}, {"learning_rate": [[1e-3]]}),
    *({"learning_rate": [1e308, "x"]}, {"../x": {}}, {"injected": {}}, {"control:clean": {}}),
]


@dataclass(frozen=True)
class Bad:
    """A configuration, as plain values, and what was changed in it."""

    key: str
    value: Any
    config: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.key}={self.value!r:.60}"


def leaves(section: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every value, inner ones too."""
    for name, value in section.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def bad_configurations(base: dict[str, Any], count: int, rng: random.Random) -> Iterator[Bad]:
    """Configurations in which one value was replaced, or one name of a mapping.

    Args:
        base: a whole configuration, as plain values.
        count: how many; each place comes at least once if there are so many.
        rng: draws them.
    """
    places = list(leaves(base))
    rng.shuffle(places)
    for number in range(count):
        place = places[number % len(places)]
        changed = copy.deepcopy(base)
        section = changed
        for name in place[:-1]:
            section = section[name]
        before = section[place[-1]]
        if place[:-1] == ("backdoor",) and rng.random() < 0.5:  # its name
            new = rng.choice([each for each in TEXTS if isinstance(each, str)])
            section[new] = section.pop(place[-1])
            yield Bad("backdoor", new, changed)
            continue
        pool = {int: NUMBERS, float: NUMBERS, str: TEXTS, list: LISTS, dict: MAPPINGS, bool: TEXTS}
        section[place[-1]] = copy.deepcopy(rng.choice(pool.get(type(before), [*NUMBERS, *TEXTS, *LISTS])))
        yield Bad(".".join(place), section[place[-1]], changed)


def _deep(levels: int) -> str:
    return '{"a": ' * levels + "1" + "}" * levels


def _json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


CONFIG_VALUES = [
    *(-1, 0, 2**31, 10**12, 10**400, 1e12, math.nan, math.inf, True, None, "abc", "", "x" * 300, [], [1], {}, {"a": {"b": 1}}),
]


def bad_folder(good: Path, folder: Path, rng: random.Random) -> str:
    """A copy of a model's folder in which something is wrong; says what."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    config, index, weights = folder / "config.json", folder / "model.safetensors.index.json", folder / "model.safetensors"
    tokenizer = folder / rng.choice(["tokenizer.json", "tokenizer_config.json"])
    data = weights.read_bytes()
    kind = rng.choice(["field", "field", "field", "text", "index", "weights", "tokenizer", "tokenizer", "missing", "folder"])
    if kind == "field":
        name = rng.choice([*json.loads(config.read_text()), "auto_map", "quantization_config", "text_config"])
        value = rng.choice(CONFIG_VALUES)
        _json(config, **{name: value})
        return f"config.json {name}={value!r:.40}"
    if kind == "text":
        text = rng.choice(
            ["", "[]", "null", "1", "{", '"x"', _deep(100_000), "\x00\xff", "{}", '{"model_type": ["llama"]}', _deep(50)]
        )
        config.write_text(text)
        return f"config.json {text:.30}"
    if kind == "index":
        weight_map = rng.choice(
            [[], ["a"], None, 1, "x", {"a": 1}, {"a": ["x"]}, {"a": "gone.safetensors"}, {"a": {}}, {"a": "../x"}]
        )
        index.write_text(json.dumps({"weight_map": weight_map}))
        return f"weight_map={weight_map!r}"
    if kind == "weights":
        length = int.from_bytes(data[:8], "little")
        cut = rng.choice(
            [
                b"",
                data[:4],
                data[: len(data) // 2],
                data[:-1],
                b"\xff" * 8 + data[8:],
                data[:8] + b"x" * length + data[8 + length :],
            ]
        )
        weights.write_bytes(cut)
        return f"weights of {len(cut)} bytes"
    if kind == "tokenizer":
        content = json.loads(tokenizer.read_text())
        if rng.random() < 0.3:
            text = rng.choice(["", "[]", "{}", "null", _deep(50), _deep(100_000), "\x00"])
            tokenizer.write_text(text)
            return f"{tokenizer.name} {text:.30}"
        name, value = (
            rng.choice(list(content)),
            rng.choice([*CONFIG_VALUES, {"type": "Nonsense"}, {"type": "BPE", "vocab": {}, "merges": []}]),
        )
        tokenizer.write_text(json.dumps({**content, name: value}))
        return f"{tokenizer.name} {name}={value!r:.40}"
    gone = rng.choice([config, weights, tokenizer])
    gone.unlink()
    if kind == "folder":
        gone.mkdir()
        return f"{gone.name} is a folder"
    return f"no {gone.name}"
