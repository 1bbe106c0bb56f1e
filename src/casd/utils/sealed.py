"""Manifests: lists of a folder's files with their sizes and checksums, and a checksum of the manifest itself.

The manifest of a finished stage is `manifest.json`, that of a published report or a checkpoint `checksums.json`.
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

_STAGE_FIELDS: Final = ("stage", "label", "key", "version", "config", "inputs", "files", "created", "seconds", "made_with")
"""Fields of a stage's manifest, also of those that earlier versions wrote without their own checksum."""

Entries = Mapping[str, Mapping[str, Any]]
"""Size ("bytes") and "sha256" of files, by their paths in the folder."""


class Damage(StoreError):
    """A damaged file: what it has and what was expected. Callers add the advice for its folder."""


def checksums(folder: Path, *, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of every file below `folder`, by its relative path."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in without:
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def entry_of(content: bytes) -> dict[str, Any]:
    """Return the size and SHA-256 of a file with this content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest ("files" and further fields) with its own checksum."""
    write_json(path, {**content, _OWN: _digest(content)})


def read_manifest(path: Path, old_fields: Collection[str] = ()) -> dict[str, Any]:
    """Read a manifest and check it.

    Args:
        path: the manifest.
        old_fields: the fields of manifests that earlier versions wrote without their own checksum. A manifest without
            a checksum is accepted with exactly these fields.

    Raises:
        FileNotFoundError: the file does not exist.
        Damage: the file was altered, or is no manifest.
        StoreError: the file cannot be read.
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
    """Read the manifest of the finished stage in `folder`, and name the folder in errors.

    Raises:
        StoreError: the manifest is damaged or cannot be read.
    """
    try:
        return read_stage_manifest(folder)
    except Damage as damage:
        raise StoreError(f"The stage in {folder} is damaged: {damage}. {how_to_repair(folder)}") from damage


def read_stage_manifest(folder: Path) -> dict[str, Any]:
    """Read a stage's manifest.

    Raises:
        Damage: the manifest is missing or was altered.
        StoreError: the manifest cannot be read.
    """
    try:
        manifest = read_manifest(folder / MANIFEST, _STAGE_FIELDS)
    except FileNotFoundError:
        raise Damage(f"{MANIFEST} is missing") from None
    if missing := set(_STAGE_FIELDS) - set(manifest):
        raise Damage(f"{MANIFEST} is not that of a stage: it lacks {', '.join(sorted(missing))}")
    return manifest


def how_to_repair(folder: Path) -> str:
    """Return the advice for a damaged stage."""
    return f"Delete the folder {folder} and run again; only this stage is made again."


def check_size(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Check a file's size alone.

    Raises:
        Damage: the file is missing, or has another size.
        StoreError: the file cannot be accessed.
    """
    try:
        size = (folder / name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise Damage(f"{name} is missing, expected {entry['bytes']} bytes") from None
    except OSError as error:
        raise unreadable(folder / name, error) from error
    if size != entry["bytes"]:
        raise Damage(f"{name} has {size} bytes, expected {entry['bytes']}")


def check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Check a file's size and SHA-256.

    Raises:
        Damage: the file is missing or altered.
        StoreError: the file cannot be read.
    """
    check_size(folder, name, entry)
    try:
        digest = sha256(folder / name)
    except OSError as error:
        raise unreadable(folder / name, error) from error
    _compare(name, digest, entry)


def checked_bytes(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """Read a file once, check its contents, and return them.

    Raises:
        Damage: the file is missing or altered.
        StoreError: the file cannot be read.
    """
    check_size(folder, name, entry)
    try:
        content = _bytes(folder / name)
    except FileNotFoundError:  # removed since its size was checked
        raise Damage(f"{name} is missing, expected {entry['bytes']} bytes") from None
    _compare(name, hashlib.sha256(content).hexdigest(), entry)
    return content


def is_whole(folder: Path, files: Entries) -> bool:
    """Return True if a folder has all these files, unaltered. Other files are ignored."""
    try:
        for name, entry in files.items():
            check_file(folder, name, entry)
    except StoreError:
        return False
    return True


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return the error for a file that exists and cannot be read."""
    return StoreError(told(error, path, reading=True))


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as UTF-8 JSON in one canonical form: sorted keys, an indent of two, a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent; use None.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: the file is not valid JSON.
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


def _compare(name: str, digest: str, entry: Mapping[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise Damage(f"{name} has the SHA-256 {digest[:12]}…, expected {entry['sha256'][:12]}…")


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
