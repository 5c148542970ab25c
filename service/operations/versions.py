"""Every version of a model: which serve, which are only on disk and why, and where each comes from."""

from functools import partial
from pathlib import Path
from typing import Any

from fold.artifact import NAME_PATTERN, Manifest, read_manifest, version_folders
from fold.errors import BnfoldError, first_line, printable
from service.batching import on_thread
from service.errors import NotFoundError, shown
from service.repository import Entry, Model, Repository

MOST = 64
"""Versions on disk whose manifests are read, the newest ones."""
Found = tuple[str, Entry | None, Manifest | str | None]
"""A version, its entry in the repository, and its manifest as it serves, or else as it is on disk, or why that cannot
be read."""


async def model_versions(repository: Repository, name: str) -> list[dict[str, Any]]:
    """The versions that are known or on disk, ascending. Raises `NotFoundError` if there is none."""
    policy = repository.settings.version_policy
    return [_described(*found, policy) for found in (await _find(repository, name)).values()]


async def model_version(repository: Repository, name: str, version: str) -> dict[str, Any]:
    """One of these, and in `fold` what became of each BatchNorm. Raises `NotFoundError`."""
    found = (await _find(repository, name)).get(version)
    if found is None:
        raise NotFoundError(f"model {shown(name)} has no version {shown(version)} here")
    manifest = found[2]
    fold = manifest.fold if isinstance(manifest, Manifest) else {}
    lists = {key: fold.get(key, ()) for key in ("folded", "kept")}
    return {**_described(*found, repository.settings.version_policy), "fold": lists}


async def _find(repository: Repository, name: str) -> dict[str, Found]:
    entries = {entry.version: entry for entry in repository.entries() if entry.name == name}
    folder = repository.folder / name
    on_disk: dict[str, Manifest | str] = {}
    if NAME_PATTERN.fullmatch(name):
        on_disk = await on_thread("read manifests", partial(_read, folder))
    if not entries and not on_disk:
        raise NotFoundError(f"no model is named {shown(name)} here")
    found: dict[str, Found] = {}
    for version in sorted({*entries, *on_disk}, key=lambda version: int(version or 0)):
        entry = entries.get(version)
        found[version] = version, entry, entry.manifest if isinstance(entry, Model) else on_disk.get(version)
    return found


def _described(version: str, entry: Entry | None, manifest: Manifest | str | None, policy: str) -> dict[str, Any]:
    unchosen = f"it is not loaded; version_policy is {policy}"
    reason = entry.reason if entry is not None else manifest if isinstance(manifest, str) else unchosen
    state = "UNAVAILABLE" if entry is None else entry.state
    device = entry.session.provider if isinstance(entry, Model) else None
    origin = _origin(manifest) if isinstance(manifest, Manifest) else {}
    return {"version": version, "state": state, "reason": reason, "device": device, **origin}


def _read(folder: Path) -> dict[str, Manifest | str]:
    """The manifests of a model's versions, or why one cannot be read. The other files are not looked at."""
    found: dict[str, Manifest | str] = {}
    try:
        versions = version_folders(folder).found
    except OSError:
        return found
    for version in versions[-MOST:]:
        try:
            found[version] = read_manifest(folder / version)
        except BnfoldError as error:
            found[version] = printable(first_line(error))
    return found


def _origin(manifest: Manifest) -> dict[str, Any]:
    fold, verdict = manifest.fold, manifest.verdict
    return {
        "created": manifest.created,
        "digest": manifest.digest,
        "files": manifest.files,
        "source": manifest.source,
        "tools": manifest.versions,
        "reference": manifest.reference,
        "precision": manifest.precision,
        "preprocessing": None if manifest.preprocessing is None else manifest.preprocessing.model_dump(),
        "labels": manifest.labels,
        "batchnorms": fold.get("batchnorms", 0),
        "folded": len(fold.get("folded", ())),
        "kept": len(fold.get("kept", ())),
        "equivalent": verdict.get("equivalent", False),
        "message": verdict.get("message", ""),
        "outputs": [
            {key: output.get(key) for key in ("name", "folded_error", "limit")} for output in verdict.get("outputs", ())
        ],
    }
