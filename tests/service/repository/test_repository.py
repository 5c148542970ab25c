"""The repository by itself: which versions are chosen, how they take over, what is left of retired ones."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fold.arrays import Arrays
from fold.artifact.directory import read_version
from fold.errors import BnfoldError
from service.errors import BadRequestError, NotFoundError, NotReadyError
from service.proof.comparer import Comparer, Task
from service.proof.references import References
from service.repository.model import Model
from service.repository.repository import Repository
from service.settings import Settings
from support.service import served
from support.service.batching import submit
from support.service.reloading import corrupt
from support.service.serving import PATIENCE

X = {"image": np.ones((1, 1, 8, 8), np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    served.net(tmp_path / "repository")
    return tmp_path / "repository"


def repository_of(folder: Path, **settings: Any) -> Repository:
    chosen = {"device": "cpu", "threads": 1, "repository_control": "explicit", "models": "*", **settings}
    repository = Repository(Settings(repository=folder, **chosen))
    repository.load()
    return repository


def run(use: Callable[[Repository], Coroutine[Any, Any, None]], folder: Path, **settings: Any) -> None:
    """Use a loaded repository on an event loop, and drain it."""

    async def main() -> None:
        repository = repository_of(folder, **settings)
        await use(repository)
        await repository.drain()

    asyncio.run(main())


def states(repository: Repository) -> dict[str, str]:
    return {f"{entry['name']}/{entry['version']}": entry["state"] for entry in repository.index()}


async def infer(model: Model) -> Arrays:
    return await submit(model.batcher, X, 1).result


async def left(repository: Repository, name: str) -> None:
    """Wait until a version has left the index."""
    while name in states(repository):
        await asyncio.sleep(0.005)


def test_a_broken_version_does_not_count_among_the_latest(folder: Path) -> None:
    for version in (2, 3):
        served.net(folder, version=version)
    corrupt(folder / "net" / "3")

    async def use(repository: Repository) -> None:
        assert states(repository) == {"net/1": "READY", "net/2": "READY", "net/3": "UNAVAILABLE"}
        assert (repository.loads, repository.failures["load"]) == (2, 1)

    run(use, folder, version_policy="latest:2")


def test_a_new_version_takes_over_and_nothing_is_left_of_the_old_one(folder: Path) -> None:
    """Neither the session nor its thread nor its reference, and without any help of the garbage collector."""

    async def use(repository: Repository) -> None:
        told: list[str] = []
        repository.on_ready = lambda model: told.append(f"ready {model}")
        repository.on_retired = lambda model: told.append(f"retired {model}")
        references = References()
        model = repository.find("net")
        await infer(model)
        traces = [weakref.ref(each) for each in (model, model.session, model.batcher, references.of(model))]
        del model
        served.net(folder, version=2)
        await repository.load_model("net")
        assert repository.find("net").version == "2"
        await left(repository, "net/1")
        async with asyncio.timeout(60):
            while any(trace() is not None for trace in traces):  # the step that retires it may not have ended
                await asyncio.sleep(0.005)
        assert told == ["ready net/2", "retired net/1"]
        assert states(repository) == {"net/2": "READY"}
        with pytest.raises(NotFoundError, match="model 'net' has no version '1'; here are: 2"):
            repository.find("net", "1")

    gc.disable()
    try:
        run(use, folder)
    finally:
        gc.enable()


def test_the_old_version_answers_whoever_has_found_it(folder: Path) -> None:
    """One that has queued, and one that holds the model and comes to the queue only after the new one serves."""

    async def use(repository: Repository) -> None:
        old = repository.find("net", "1")
        served.net(folder, version=2)
        queued = [submit(old.batcher, X, 1) for _ in range(5)]
        with old:
            await repository.load_model("net")
            new = repository.find("net")
            assert (new.version, states(repository)["net/1"]) == ("2", "UNLOADING")
            with pytest.raises(NotReadyError, match="net/1 is not ready: other versions have taken over"):
                repository.find("net", "1")
            for _ in range(3):
                await infer(old)
                await asyncio.sleep(0.02)
            assert not old.retired
        await left(repository, "net/1")
        assert old.retired
        for ticket in queued:
            assert ticket.result.done()
            assert list(ticket.result.result()) == ["scores"]
        await infer(new)

    run(use, folder)


def test_what_is_loaded_and_unchanged_stays(folder: Path) -> None:
    async def use(repository: Repository) -> None:
        model = repository.find("net")
        await repository.load_model("net")
        assert repository.find("net") is model
        assert (repository.loads, repository.unloads) == (1, 0)

    run(use, folder)


def test_calls_for_one_model_wait_for_each_other(folder: Path) -> None:
    served.net(folder, "other")

    async def use(repository: Repository) -> None:
        served.net(folder, version=2)
        await asyncio.gather(*(repository.load_model("net") for _ in range(5)), repository.load_model("other"))
        assert repository.loads == 3, "the first of five loaded it, the others found it unchanged"
        await asyncio.gather(repository.unload_model("net"), repository.load_model("net"))
        assert repository.find("net").version == "2"

    run(use, folder)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Versions are read only while it is set."""
    gate = threading.Event()
    gate.set()

    def read(path: Path) -> Any:
        assert gate.wait(PATIENCE)
        return read_version(path)

    monkeypatch.setattr("service.repository.repository.read_version", read)
    return gate


async def loading(repository: Repository, folder: Path, gate: threading.Event) -> "asyncio.Task[None]":
    """A new model that is being loaded, for as long as the gate is closed."""
    served.net(folder, "new")
    gate.clear()
    task = asyncio.create_task(repository.load_model("new"))
    while "new/1" not in states(repository):
        await asyncio.sleep(0.001)
    return task


def test_a_version_is_loading_while_it_is_loaded(folder: Path, gate: threading.Event) -> None:
    async def use(repository: Repository) -> None:
        task = await loading(repository, folder, gate)
        assert states(repository)["new/1"] == "LOADING"
        with pytest.raises(NotReadyError, match="model new/1 is not ready: it is being loaded"):
            repository.find("new")
        gate.set()
        await task
        assert states(repository)["new/1"] == "READY"

    run(use, folder)


def test_stopping_ends_what_is_being_loaded(folder: Path, gate: threading.Event) -> None:
    async def use(repository: Repository) -> None:
        task = await loading(repository, folder, gate)
        repository.stop_loading()
        gate.set()
        with pytest.raises(NotReadyError, match="the service is stopping"):
            await task
        with pytest.raises(NotReadyError, match="the service is stopping"):
            await repository.load_model("net")
        assert states(repository) == {"net/1": "READY"}

    run(use, folder)


def test_what_cannot_be_loaded_leaves_the_index_as_it_was(folder: Path) -> None:
    async def use(repository: Repository) -> None:
        for name in ("nobody", "..", "net/1", ""):
            with pytest.raises(NotFoundError, match="no model is named"):
                await repository.load_model(name)
        await repository.unload_model("nobody")
        shutil.rmtree(folder / "net")
        with pytest.raises(NotFoundError, match="no model is named 'net' in "):
            await repository.load_model("net")
        assert states(repository) == {"net/1": "READY"}
        await infer(repository.find("net"))

    run(use, folder)


def test_files_that_changed_under_a_version_leave_it_as_it_was_loaded(folder: Path) -> None:
    async def use(repository: Repository) -> None:
        model = repository.find("net")
        corrupt(folder / "net" / "1")
        with pytest.raises(BadRequestError, match=r"not loaded: net/1: .*model.onnx: was changed .*; net/1 serves$"):
            await repository.load_model("net")
        assert repository.find("net") is model
        (entry,) = repository.index()
        assert entry["state"] == "READY"
        assert entry["reason"].startswith("serves as it was loaded, for its files cannot be: ")
        assert [broken.cause for broken in repository.broken()] == ["load"]
        corrupt(folder / "net" / "1")  # the same byte again
        await repository.load_model("net")
        assert (repository.broken(), repository.index()[0]["reason"]) == ([], "")

    run(use, folder)


def test_a_version_that_is_gone_serves_on_while_no_other_can(folder: Path) -> None:
    served.net(folder, version=2)

    async def use(repository: Repository) -> None:
        shutil.rmtree(folder / "net" / "2")
        corrupt(folder / "net" / "1")
        with pytest.raises(BadRequestError, match="net/2 serves"):
            await repository.load_model("net")
        assert states(repository) == {"net/1": "UNAVAILABLE", "net/2": "READY"}
        assert repository.entry("net").reason.endswith("they are gone from the repository")
        corrupt(folder / "net" / "1")  # back again
        await repository.load_model("net")
        await left(repository, "net/2")
        assert states(repository) == {"net/1": "READY"}

    run(use, folder)


def test_unloading_answers_what_was_accepted(folder: Path) -> None:
    async def use(repository: Repository) -> None:
        tickets = [submit(repository.find("net").batcher, X, 1) for _ in range(20)]
        unloading = asyncio.create_task(repository.unload_model("net"))
        await asyncio.sleep(0)
        assert states(repository) == {"net/1": "UNLOADING"}
        await unloading
        assert all(ticket.result.done() and not ticket.result.exception() for ticket in tickets)
        (entry,) = repository.index()
        assert entry == {"name": "net", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        with pytest.raises(NotReadyError, match="model net/1 is not ready: unloaded"):
            repository.find("net")
        await repository.unload_model("net")
        await repository.load_model("net")
        await infer(repository.find("net"))

    run(use, folder)


def test_who_holds_a_version_for_ever_does_not_keep_it(folder: Path) -> None:
    async def use(repository: Repository) -> None:
        model = repository.find("net")
        with model:
            await repository.unload_model("net")
            with pytest.raises(NotReadyError):
                await infer(model)

    run(use, folder, request_seconds=0.05, timeout_seconds=0.05)


@pytest.mark.parametrize("control", ["explicit", "watch"])
def test_an_empty_repository_will_do_where_models_can_come(tmp_path: Path, control: str) -> None:
    assert repository_of(tmp_path, repository_control=control).index() == []
    with pytest.raises(BnfoldError, match="holds no model"):
        repository_of(tmp_path, repository_control="fixed")
    with pytest.raises(BnfoldError, match="no such folder"):
        repository_of(tmp_path / "nowhere", repository_control=control)


@pytest.fixture
def comparer() -> Iterator[Comparer]:
    comparer = Comparer()
    yield comparer
    comparer.stop()


def test_what_compares_lets_a_reference_go(folder: Path, comparer: Comparer) -> None:
    """Without its file it can be compared with as long as it is kept, and no longer."""
    path = folder / "net" / "1"
    digest = read_version(path).manifest.digest
    asked, answered = X, {"scores": np.zeros((1, 10), np.float32)}
    comparer.forget("net/1", digest)  # nothing is there yet
    assert comparer.compare(Task("net/1", digest, path, "cpu", asked, answered)).verdict is not None
    shutil.rmtree(path)
    comparer.forget("net/1", "another version's")
    assert comparer.compare(Task("net/1", digest, path, "cpu", asked, answered)).verdict is not None
    comparer.forget("net/1", digest)
    assert "manifest.json: cannot be read" in comparer.compare(Task("net/1", digest, path, "cpu")).failure
