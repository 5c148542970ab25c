"""Computes shards on a Ray cluster: workers that hold the model, each with one shard at a time.

A worker commits its shards itself, so a node that is lost takes no shard with it that was committed. The others are
given to a new worker. All nodes see the data, the folder that is written and a model that is no URL under the same
paths.
"""

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fold.errors import BnfoldError
from fold.prediction.compute import ShardRun, Told
from fold.prediction.job import Choices, Job
from fold.prediction.model import LoadedModel, load
from fold.prediction.plan import Shard
from fold.prediction.shards import Noted
from fold.remote import Place

DEATHS = 3
"""How many workers may die over one shard: one that is too large for a node kills every one."""
BLOCKS = 8
"""Blocks of consecutive shards for each worker. Shards of one row group are best read one after another."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know. `folder` is the working directory, in which the other paths are meant; `digest` is
    that of the model that the run began with."""

    folder: Path
    model: Place
    digest: str
    device: str
    threads: int
    data: Sequence[str]
    out: Path
    choices: Choices


class Worker:
    """The process of a worker."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._run: tuple[Job, ShardRun] | None = None

    def compute(self, number: int) -> Noted:
        """Computes and commits one shard."""
        if self._run is None:  # here and not before, so that the driver is told what was raised
            self._run = self._open()
        job, run = self._run
        [noted] = run.compute([job.shards[number]])
        return noted

    def _open(self) -> tuple[Job, ShardRun]:
        task = self._task
        try:
            os.chdir(task.folder)
        except OSError as error:
            raise BnfoldError(
                f"{task.folder}: is not on node {os.uname().nodename}; share it with all nodes"
            ) from error
        model = load(task.model, device=task.device, threads=task.threads)
        if model.manifest.digest != task.digest:
            raise BnfoldError(f"{model}: is another version on node {os.uname().nodename}")
        job = Job.of(model, task.data, task.out, task.choices)
        return job, ShardRun(model, job)


@dataclass(eq=False)
class _Actor:
    """A worker as the driver knows it: its present shard, and those that it will get after it."""

    handle: Any
    block: deque[Shard] = field(default_factory=deque)
    shard: Shard | None = None


def compute_on_ray(model: LoadedModel, job: Job, shards: Sequence[Shard], told: Told) -> Generator[Noted]:
    """What was noted of each shard when it is committed, in any order; `told` is told of its rows.

    The cluster is that of RAY_ADDRESS, or one of this machine. It gets a worker for each GPU, or for so many of its
    processors as the model has threads (0 is 1). Raises `BnfoldError` for a cluster without any, for an error of a
    worker, and if several workers died over one shard.
    """
    began = not ray.is_initialized()
    if began:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died, and JSON may go to stdout
            yield from _compute(model, job, shards, told)
    finally:
        if began:
            ray.shutdown()


def _compute(model: LoadedModel, job: Job, shards: Sequence[Shard], told: Told) -> Generator[Noted]:
    has, gpus, threads = ray.cluster_resources(), int(model.session.provider == "cuda"), max(1, model.threads)
    count = int(has.get("GPU", 0) if gpus else has.get("CPU", 0) // threads)
    if count < 1:
        wanted = "GPU" if gpus else f"{threads} processors"
        raise BnfoldError(f"the Ray cluster has no {wanted} for a worker; it has {dict(has)}")
    device, version = "cuda" if gpus else "cpu", model.session.version
    place = version.url or version.path.absolute()
    task = Task(Path.cwd(), place, model.manifest.digest, device, threads, job.data, job.out, job.choices)
    worker = ray.remote(num_cpus=0 if gpus else threads, num_gpus=gpus)(Worker)
    # 1. A shard for each worker
    blocks = _blocks(shards, count * BLOCKS)
    working: dict[Any, _Actor] = {}
    for _ in range(min(count, len(blocks))):
        _give_next(_Actor(worker.remote(task)), blocks, working)
    # 2. The next one when it is committed, or a new worker
    deaths: Counter[int] = Counter()
    while working:
        [done], _ = ray.wait(list(working), num_returns=1)
        actor = working.pop(done)
        shard = actor.shard
        assert shard is not None
        try:
            noted: Noted = ray.get(done)
        except RayActorError as error:
            deaths[shard.number] += 1
            if deaths[shard.number] == DEATHS:
                text = f"shard {shard.number}: {DEATHS} workers died over it, perhaps for lack of memory"
                raise BnfoldError(f"{text}; take fewer --shard-rows") from error
            _give_next(_Actor(worker.remote(task), deque([shard, *actor.block])), blocks, working)
        except RayTaskError as error:
            raise error.cause from error
        else:
            told(shard.rows)
            yield noted
            _give_next(actor, blocks, working)
        del actor  # if it is idle, it ends, and one that waits for its processors begins


def _give_next(actor: _Actor, blocks: deque[deque[Shard]], working: dict[Any, _Actor]) -> None:
    """Give a worker its next shard, if one is left."""
    if not actor.block and blocks:
        actor.block = blocks.popleft()
    if actor.block:
        actor.shard = actor.block.popleft()
        working[actor.handle.compute.remote(actor.shard.number)] = actor


def _blocks(shards: Sequence[Shard], count: int) -> deque[deque[Shard]]:
    """Consecutive shards, in at most `count` blocks."""
    size = -(-len(shards) // count)
    return deque(deque(shards[at : at + size]) for at in range(0, len(shards), size))
