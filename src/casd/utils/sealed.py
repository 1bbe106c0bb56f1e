"""Manifests: lists of a folder's files with their sizes and checksums. A manifest has a checksum of itself, too.

A finished stage has its list in `manifest.json`, a published report and a checkpoint in `checksums.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from casd.utils.disk import told
from casd.utils.errors import StoreError

MANIFEST: Final = "manifest.json"
"""The manifest of a stage."""
CHECKSUMS: Final = "checksums.json"
"""The manifest of a published report or of a checkpoint."""
_OWN: Final = "manifest_sha256"
"""The field with the SHA-256 of all other fields."""

_STAGE_FIELDS: Final = (*("stage", "label", "key", "version", "config", "inputs", "files", "created", "seconds", "made_with"),)
"""What manifests of stages have that were written before they had a checksum of themselves."""

Entries = Mapping[str, Mapping[str, Any]]
"""By a file's path in the folder: its size, "bytes", and its "sha256"."""


class Damage(StoreError):
    """What a file has and what was expected, without the advice that depends on where it is."""


def checksums(folder: Path, *, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by its path relative to it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in without:
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def entry_of(content: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file with this content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest ("files" and further fields) with the checksum of itself."""
    write_json(path, {**content, _OWN: _digest(content)})


def read_manifest(path: Path, old_fields: Collection[str] = ()) -> dict[str, Any]:
    """Read a manifest and check it.

    Args:
        path: of the file.
        old_fields: the fields of manifests that earlier versions wrote without a checksum of themselves. Exactly these
            are accepted: any others mean that the file was altered.

    Raises:
        FileNotFoundError: there is no such file.
        Damage: it was altered or is no manifest.
        StoreError: it cannot be read.
    """
    try:
        manifest = json.loads(_bytes(path))
    except ValueError as error:
        raise Damage(f"{path.name} is not valid JSON ({error})") from error
    fields = set(manifest) if isinstance(manifest, dict) else set()
    if _OWN in fields:
        own = manifest.pop(_OWN)
        if own != _digest_or_none(manifest):
            raise Damage(f"{path.name} was altered (its own checksum does not match)")
    elif not fields or fields != set(old_fields):
        raise Damage(f"{path.name} is not a manifest: it lacks {_OWN}, or has other fields than those of earlier versions")
    if not _lists_files(manifest.get("files")):
        raise Damage(f"{path.name} has no valid list of files")
    return manifest


def stage_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the finished stage in `folder`, for readers that know only the folder.

    Raises:
        StoreError: it is damaged or cannot be read.
    """
    try:
        return read_stage_manifest(folder)
    except Damage as damage:
        raise StoreError(f"The stage in {folder} is damaged: {damage}. {how_to_repair(folder)}") from damage


def read_stage_manifest(folder: Path) -> dict[str, Any]:
    """Read a stage's manifest.

    Raises:
        Damage: it is missing or was altered.
        StoreError: it cannot be read.
    """
    try:
        manifest = read_manifest(folder / MANIFEST, _STAGE_FIELDS)
    except FileNotFoundError:
        raise Damage(f"{MANIFEST} is missing") from None
    if missing := set(_STAGE_FIELDS) - set(manifest):
        raise Damage(f"{MANIFEST} is that of something else: it lacks {', '.join(sorted(missing))}")
    return manifest


def how_to_repair(folder: Path) -> str:
    """What to do about a damaged stage."""
    return f"Delete the folder {folder} and run again; only this stage is made anew."


def check_size(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Check a file's size alone.

    Raises:
        Damage: the file is missing, or has another size.
        StoreError: that cannot be seen.
    """
    try:
        found = (folder / name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise Damage(f"{name} is missing, expected {entry['bytes']} bytes") from None
    except OSError as error:
        raise unreadable(folder / name, error) from error
    if found != entry["bytes"]:
        raise Damage(f"{name} has {found} bytes, expected {entry['bytes']}")


def check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Check a file's size and SHA-256.

    Raises:
        Damage: the file is missing or altered.
        StoreError: it cannot be read.
    """
    check_size(folder, name, entry)
    try:
        found = sha256(folder / name)
    except OSError as error:
        raise unreadable(folder / name, error) from error
    _compare(name, found, entry)


def checked_bytes(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """A file's contents, read once, after checking them.

    Raises:
        Damage: the file is missing or altered.
        StoreError: it cannot be read.
    """
    check_size(folder, name, entry)
    try:
        content = _bytes(folder / name)
    except FileNotFoundError:  # removed a moment ago
        raise Damage(f"{name} is missing, expected {entry['bytes']} bytes") from None
    _compare(name, hashlib.sha256(content).hexdigest(), entry)
    return content


def is_whole(folder: Path, files: Entries) -> bool:
    """Whether a folder has all these files, unaltered. Others do not matter."""
    try:
        for name, entry in files.items():
            check_file(folder, name, entry)
    except StoreError:
        return False
    return True


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error for a file that is there and cannot be read."""
    return StoreError(told(error, path, reading=True))


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as UTF-8 JSON in one canonical form: sorted keys, an indent of two, a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have; write None.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise StoreError(f"{path} is not valid JSON: {error}.") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def _compare(name: str, found: str, entry: Mapping[str, Any]) -> None:
    if found != entry["sha256"]:
        raise Damage(f"{name} has the SHA-256 {found[:12]}…, expected {entry['sha256'][:12]}…")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_or_none(content: Mapping[str, Any]) -> str | None:
    try:
        return _digest(content)
    except ValueError:  # an altered number is NaN, or altered text is not Unicode
        return None


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )
