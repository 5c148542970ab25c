"""The models that the service knows, by name and version; how versions are loaded, take over, and are retired.

A version is opened, warmed up and tried on a thread, beside the one that serves. Then it takes over in one step of the
event loop: earlier requests have the old one's batcher, which answers them all, and later ones the new one's. The old
version is retired when its last request has been answered. A version that cannot be loaded is listed with the reason;
what was loaded before and other models serve on.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fold.artifact import (
    NAME_PATTERN,
    NAMES,
    ModelVersion,
    model_folders,
    read_version,
    repository_of,
    version_folders,
)
from fold.errors import BnfoldError, printable
from fold.remote import Cache, is_url
from fold.runtime import return_freed
from service.batching import on_thread
from service.errors import BadRequestError, NotFoundError, NotReadyError, shown
from service.repository.model import Absent, Entry, Model
from service.repository.remote import Mirror
from service.repository.versions import (
    WHOLE_MODEL,
    Failure,
    LoadOutcome,
    Opened,
    ignored_folders,
    ignored_versions,
    open_versions,
)
from service.settings import Settings

log = logging.getLogger("bnfold")

Versions = dict[str, Entry]
"""Of one model, ascending."""


class Repository:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        url, cache = settings.repository, Cache(settings.cache, settings.max_cache_bytes)
        self._mirror = Mirror(url, cache) if is_url(url) else None
        self.folder = self._mirror.folder if self._mirror is not None else Path(settings.repository)
        """Has NAME/VERSION with the manifest of each version, and with its other files, unless there is a mirror."""
        self.where = str(self._mirror or self.folder)
        self.on_ready: Callable[[Model], None] = lambda model: None
        """Called with each model that is loaded while the service runs, before its first request."""
        self.on_retired: Callable[[Model], None] = lambda model: None
        """Called with each model that has answered its last request."""
        self.loads = 0
        self.unloads = 0
        self.failures: Counter[str] = Counter({"load": 0, "certificate": 0})
        self.loaded = False
        self.left_out: list[str] = []
        """Versions on disk at the start that the policy did not choose."""
        self._versions: dict[str, Versions] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._ignored: dict[str, str] = {}
        """What was last told of ignored folders, by the name of their model."""

    # Finding

    def find(self, name: str, version: str | None = None) -> Model:
        """The version asked for, or the latest that serves. Raises 404 if there is none, 503 if it cannot serve.

        A caller that awaits anything before it uses the model holds it meanwhile: `with model: ...`.
        """
        found = self.entry(name, version)
        if isinstance(found, Absent):
            raise NotReadyError(f"model {found} is not ready: {found.reason}")
        if found.session.lost is not None:
            raise NotReadyError(f"model {found} is not ready: its device is lost: {found.session.lost}")
        return found

    def entry(self, name: str, version: str | None = None) -> Entry:
        versions = self._versions.get(name)
        if not versions:
            known = ", ".join(self._versions) or "none"
            raise NotFoundError(f"no model is named {shown(name)}; here are: {known}")
        if version is None:
            for entry in reversed(versions.values()):
                if isinstance(entry, Model):
                    return entry
            return next(reversed(versions.values()))
        if not version or version not in versions:
            known = ", ".join(filter(None, versions))
            raise NotFoundError(f"model {name!r} has no version {shown(version)}; here are: {known}")
        return versions[version]

    def entries(self) -> list[Entry]:
        return [entry for versions in self._versions.values() for entry in versions.values()]

    def versions(self, name: str) -> list[str]:
        """Those that serve."""
        return [version for version, entry in self._versions[name].items() if isinstance(entry, Model)]

    def ready(self) -> list[Model]:
        return [entry for entry in self.entries() if isinstance(entry, Model)]

    def lost(self) -> str | None:
        """What the device said when it answered no more; this process cannot get it back."""
        return next((model.session.lost for model in self.ready() if model.session.lost is not None), None)

    def serves(self, name: str, version: str) -> bool:
        return isinstance(self._versions.get(name, {}).get(version), Model)

    def broken(self) -> list[Absent]:
        """Versions that cannot be loaded, also those of which an older state serves on."""
        faults = [entry.fault if isinstance(entry, Model) else entry for entry in self.entries()]
        return [fault for fault in faults if fault is not None and fault.cause is not None]

    def all_ready(self) -> bool:
        """Whether no version is broken and no model is only being loaded. Unloaded models do not count."""
        loading = [entry for entry in self.entries() if entry.state == "LOADING" and not self.versions(entry.name)]
        return not loading and not self.broken()

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """What `POST /v2/repository/index` answers; `ready` leaves out what cannot serve."""
        return [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in self.entries()
            if not ready or isinstance(entry, Model)
        ]

    # Behind a URL

    def refresh(self, model: str | None = None) -> None:
        """Look at what a repository behind a URL has, of one model alone if it is given. Raises `BnfoldError` if it
        cannot be read."""
        if self._mirror is not None:
            self._mirror.refresh(model)

    def _read(self, version: Path) -> ModelVersion:
        """A version of `folder`, whose files are checked. Raises `BnfoldError`."""
        return read_version(version) if self._mirror is None else self._mirror.read(version)

    # At the start

    def load(self) -> None:
        """Load the versions that the policy chooses of the models that the settings choose. Raises `BnfoldError` if one
        of these is not there, if nothing can be served and nothing can be loaded later, or if this machine cannot serve
        at all."""
        folder, chosen = self.folder, self.settings.chosen_models
        self.refresh()
        try:
            models = model_folders(folder)
            self.tell_ignored("", ignored_folders("", models))
            if chosen is not None and (unknown := sorted(chosen.difference(models.found))):
                here = ", ".join(models.found) or "none"
                raise BnfoldError(f"models: {self.where} has no {', '.join(unknown)}; here are: {here}")
            for name in models.found:
                if chosen is None or name in chosen:
                    self._load_first(name)
                elif self.settings.repository_control == "explicit" and (unloaded := _unloaded(folder / name)):
                    self._versions[name] = unloaded
        except OSError as error:
            raise BnfoldError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
        except NotReadyError as error:
            raise BnfoldError(str(error)) from error
        self.loaded = True
        if self.settings.repository_control != "fixed":
            return
        if not self._versions:
            if (above := repository_of(folder)) is not None:
                raise BnfoldError(f"{folder}: holds one model; serve its repository, bnfold serve {above}")
            ignored = "".join(f"; ignored: {text}" for text in self._ignored.values())
            raise BnfoldError(
                f"{self.where}: holds no model; expected NAME/VERSION folders, as `bnfold fold --out` writes{ignored}"
            )
        if not self.ready():
            reasons = "; ".join(f"{broken}: {broken.details}" for broken in self.broken())
            raise BnfoldError(f"{self.where}: no model can be served: {reasons}")

    def _load_first(self, name: str) -> None:
        folder = self.folder / name
        self.tell_ignored(name, ignored_versions(folder))
        outcomes = open_versions(self.settings, folder, {}, read=self._read)
        unable = next((o for o in outcomes.values() if isinstance(o, Failure) and o.of_machine), None)
        if unable is not None:
            raise BnfoldError(unable.details)
        if outcomes:
            self._take_over(name, outcomes)
        if WHOLE_MODEL not in outcomes:
            found = version_folders(folder).found
            self.left_out += [f"{name}/{version}" for version in found if version not in outcomes]

    def tell_ignored(self, name: str, ignored: str) -> None:
        """Log which folders of a model (of the repository, for an empty name) are ignored, once for each change."""
        if ignored and ignored != self._ignored.get(name):
            log.warning("bnfold: ignoring %s", ignored)
        if ignored:
            self._ignored[name] = ignored
        else:
            self._ignored.pop(name, None)

    # While serving

    async def load_model(self, name: str) -> None:
        """Serve the versions on disk that the policy chooses; loaded and unchanged versions stay as they are.

        Returns when the new version has taken over; the old one may still have requests to answer. Raises
        `NotFoundError` if there is no such model on disk, `BadRequestError` with the reason if a version cannot be
        loaded; then the old one serves on. Calls for one model run one after another.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise NotFoundError(f"no model is named {shown(name)}; expected a folder of the repository: {NAMES}")
        async with self._lock(name):
            known = dict(self._versions.get(name, {}))
            serving = {v: entry.manifest.digest for v, entry in known.items() if isinstance(entry, Model)}
            try:
                outcomes = await self._open(name, serving)
                if not outcomes:
                    ignored = self._ignored.get(name)
                    raise NotFoundError(
                        f"no model is named {shown(name)} in {printable(self.where)}"
                        + (f"; ignored: {ignored}" if ignored else "")
                    )
            except BaseException:
                self._put_back(name, known)
                raise
            replaced = self._take_over(name, outcomes)
            if replaced:
                self._start_retiring(replaced)
            self._report(name, outcomes)

    async def unload_model(self, name: str) -> None:
        """Answer the accepted requests, then retire every version of the model. It stays in the index, UNAVAILABLE. A
        model that is not known is unloaded already."""
        if name in self._versions:
            await self._unload(name, "unloaded")

    async def remove(self, name: str) -> None:
        """Retire a model that was removed from disk, and forget it."""
        if name in self._versions:
            await self._unload(name, "gone from the repository")
            self._versions.pop(name, None)

    def stop_loading(self) -> None:
        """A load that is under way ends before its next step, and no other begins."""
        self._stopping = True

    async def drain(self) -> None:
        """Answer every accepted request, and refuse new ones."""
        self.stop_loading()
        for model in self.ready():
            await model.batcher.drain()
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _open(self, name: str, serving: Mapping[str, str]) -> dict[str, LoadOutcome]:
        loop = asyncio.get_running_loop()
        self._halt()

        def announce(version: str) -> None:
            loop.call_soon_threadsafe(self._set_loading, name, version)

        def job() -> dict[str, LoadOutcome]:
            try:
                self.refresh(name)
            except BnfoldError as error:
                raise NotReadyError(str(error)) from error
            self.tell_ignored(name, ignored_versions(self.folder / name))
            return open_versions(
                self.settings, self.folder / name, serving, read=self._read, halt=self._halt, announce=announce
            )

        return await on_thread(f"loading {name}", job)

    def _halt(self) -> None:
        if self._stopping:
            raise NotReadyError("the service is stopping, so nothing is loaded any more")

    def _set_loading(self, name: str, version: str) -> None:
        versions = self._versions.get(name, {})
        if not isinstance(versions.get(version), Model):
            loading = Absent(name, version, "LOADING", "it is being loaded")
            self._versions[name] = _ascending({**versions, version: loading})

    def _put_back(self, name: str, known: Versions) -> None:
        """List again what was listed before the load."""
        versions = self._versions.get(name, {})
        for version in [v for v, entry in versions.items() if entry.state == "LOADING"]:
            if version in known:
                versions[version] = known[version]
            else:
                del versions[version]
        if not versions:
            self._versions.pop(name, None)

    def _take_over(self, name: str, outcomes: Mapping[str, LoadOutcome]) -> list[Model]:
        """Exchange the versions of a model in one step. Returns those that are to be retired."""
        before = self._versions.get(name, {})
        unreadable = outcomes.get(WHOLE_MODEL)
        if isinstance(unreadable, Failure):
            self.failures[unreadable.cause] += 1
            broken = _broken(name, WHOLE_MODEL, unreadable)
            self._versions[name] = _ascending({**before, WHOLE_MODEL: broken})
            return []
        old = {v: entry for v, entry in before.items() if isinstance(entry, Model)}
        new: Versions = {v: entry for v, entry in before.items() if entry.state == "UNLOADING"}
        for version, outcome in outcomes.items():
            if isinstance(outcome, Opened):
                new[version] = model = Model.of(name, version, outcome.session, self.settings)
                self.loads += 1
                self.on_ready(model)
                continue
            fault = None
            if isinstance(outcome, Failure):
                fault = _broken(name, version, outcome)
                self.failures[outcome.cause] += 1
            if version in old:
                old[version].fault = fault
                new[version] = old[version]
            elif fault is not None:
                new[version] = fault
        replaced = {version: model for version, model in old.items() if new.get(version) is not model}
        if replaced and not any(isinstance(entry, Model) for entry in new.values()):
            for version, model in replaced.items():  # removed from disk, but nothing there can take over
                model.fault = Absent(name, version, "UNAVAILABLE", "they are gone from the repository")
            new |= replaced
            replaced = {}
        for version in replaced.keys() - new.keys():
            new[version] = Absent(name, version, "UNLOADING", "other versions have taken over")
        self._versions[name] = _ascending(new)
        return list(replaced.values())

    async def _unload(self, name: str, reason: str) -> None:
        async with self._lock(name):
            versions = self._versions.get(name, {})
            reasons = {version: _why_unloaded(entry, reason) for version, entry in versions.items()}
            models = [entry for entry in versions.values() if isinstance(entry, Model)]
            self._versions[name] = {v: Absent(name, v, "UNLOADING", "it is being unloaded") for v in reasons}
            await self._retire_all(models)
            self._versions[name] = {v: Absent(name, v, "UNAVAILABLE", why) for v, why in reasons.items()}

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _start_retiring(self, replaced: list[Model]) -> None:
        task = asyncio.get_running_loop().create_task(self._retire_replaced(replaced))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire_replaced(self, replaced: list[Model]) -> None:
        listed = [self._versions[model.name].get(model.version) for model in replaced]
        await self._retire_all(replaced)
        for entry in listed:
            if isinstance(entry, Absent) and self._versions.get(entry.name, {}).get(entry.version) is entry:
                del self._versions[entry.name][entry.version]

    async def _retire_all(self, models: list[Model]) -> None:
        """Empties the list, so that nothing here holds a retired model."""
        while models:
            await self._retire(models.pop())
        await on_thread("return freed memory", return_freed)

    async def _retire(self, model: Model) -> None:
        await model.unused(self.settings.request_seconds + self.settings.timeout_seconds)
        await model.batcher.drain()
        self.unloads += 1
        model.retired = True
        self.on_retired(model)
        log.info("bnfold: unloaded %s", str(model))  # a handler that keeps records must not keep the model

    def _report(self, name: str, outcomes: Mapping[str, LoadOutcome]) -> None:
        """Log what was loaded. Raises `BadRequestError` for what was not."""
        failed = []
        serving = ", ".join(f"{name}/{version}" for version in self.versions(name))
        for version, outcome in outcomes.items():
            if isinstance(outcome, Opened):
                provider, seconds = outcome.session.provider, outcome.seconds
                log.info("bnfold: loaded %s/%s (%s) in %.2f s", name, version, provider, seconds)
            elif isinstance(outcome, Failure):
                broken = _broken(name, version, outcome)
                failed.append(f"{broken}: {broken.reason}")
                suffix = f"; {serving} serves" if serving else ""
                log.warning("bnfold: not serving %s: %s%s", str(broken), broken.details, suffix)
        if failed:
            raise BadRequestError(f"not loaded: {'; '.join(failed)}" + (f"; {serving} serves" if serving else ""))


def _broken(name: str, version: str, failure: Failure) -> Absent:
    return Absent(name, version, "UNAVAILABLE", failure.reason, failure.cause, failure.details)


def _unloaded(model: Path) -> Versions:
    """Of a model that calls may load."""
    with contextlib.suppress(OSError):  # a load says why
        return {v: Absent(model.name, v, "UNAVAILABLE", "not loaded yet") for v in version_folders(model).found}
    return {}


def _why_unloaded(entry: Entry, reason: str) -> str:
    """`reason`, and why the version could not have served."""
    fault = entry.fault if isinstance(entry, Model) else entry
    return reason if fault is None or fault.cause is None else f"{reason}; it could not be loaded: {fault.reason}"


def _ascending(versions: Versions) -> Versions:
    return {version: versions[version] for version in sorted(versions, key=lambda version: int(version or 0))}
