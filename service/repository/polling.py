"""Polling the repository: what changes on disk is loaded, and what is removed from there is retired.

The folder is read every `watch_seconds`, names and times only: notifications do not cross network file systems and
container mounts, where repositories live. A version is published by a rename, so it is seen whole.
"""

import asyncio
import logging

from fold.artifact import model_names
from fold.errors import BnfoldError
from service.batching import on_thread
from service.errors import ServiceError
from service.repository.repository import Repository
from service.repository.versions import stamp

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
        self._complained = ""
        before, self._seen = self._seen, stamps
        for name in sorted(before.keys() - stamps.keys()):
            await self._repository.remove(name)
        for name in sorted(name for name, found in stamps.items() if before.get(name) != found):
            try:
                await self._repository.load_model(name)
            except ServiceError:  # the repository has logged it
                continue

    def _stamps(self) -> Stamps:
        folder = self._repository.settings.repository
        try:
            return {name: stamp(folder / name) for name in model_names(folder)}
        except OSError as error:
            raise BnfoldError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error

    def _complain(self, text: str) -> None:
        """Once for each fault: a network folder that is away for an hour is one."""
        if text != self._complained:
            self._complained = text
            log.warning("bnfold: the repository cannot be polled, and all models serve on: %s", text)
