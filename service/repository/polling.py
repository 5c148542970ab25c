"""Polling the repository: what changes on disk is loaded, and what is removed from there is retired.

The folder is read every `watch_seconds`, names and times only: notifications do not cross network file systems and
container mounts, where repositories live. A version is published by a rename, so it is seen whole.
"""

import asyncio
import logging

from fold.artifact import model_folders
from fold.errors import BnfoldError
from service.batching import on_thread
from service.errors import NotReadyError, ServiceError
from service.repository.repository import Repository
from service.repository.versions import ignored_folders, stamp

log = logging.getLogger("bnfold")

Stamps = dict[str, tuple[object, ...]]


class Poller:
    def __init__(self, repository: Repository) -> None:
        """Changes count from now on, so make it before the repository is loaded."""
        self._repository = repository
        self._seen = self._stamps()
        self._complained = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._repository.settings.watch_seconds)
            try:
                await self.poll()
            except Exception:  # whatever it was, the next poll may succeed
                log.exception("bnfold: polling the repository failed; it is tried again")

    async def poll(self) -> None:
        """Load what has changed since the last poll. A failure is logged once, and tried again when it changes."""
        try:
            stamps = await on_thread("poll the repository", self._stamps)
        except BnfoldError as error:
            self._complain(str(error))
            return
        before, self._seen = self._seen, stamps
        for name in sorted(before.keys() - stamps.keys()):
            await self._repository.remove(name)
        fault = ""
        for name in sorted(name for name, found in stamps.items() if before.get(name) != found):
            try:
                await self._repository.load_model(name)
            except NotReadyError as error:  # no fault of the model, so the next poll tries it again
                self._seen.pop(name)
                fault = str(error)
            except ServiceError:  # the repository has logged it
                continue
        self._complain(fault)

    def _stamps(self) -> Stamps:
        """Of the models that have a version or cannot be read. Tells what is neither."""
        folder, chosen, stamps = self._repository.folder, self._repository.settings.chosen_models, Stamps()
        self._repository.refresh()
        try:
            models = model_folders(folder)
            self._repository.tell_ignored("", ignored_folders("", models))
            for name in models.found:
                if chosen is not None and name not in chosen:
                    continue
                found, versions = stamp(folder / name)
                self._repository.tell_ignored(name, ignored_folders(name, versions))
                if found:
                    stamps[name] = found
        except OSError as error:
            raise BnfoldError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
        return stamps

    def _complain(self, text: str) -> None:
        """Once for each fault, and nothing of none: a network folder that is away for an hour is one."""
        if text and text != self._complained:
            log.warning("bnfold: the repository cannot be polled, and all models serve on: %s", text)
        self._complained = text
