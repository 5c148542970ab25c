"""Shadow checks: a share of the responses is compared with the reference, in the background, on the arrays sent.

No response waits for it. A thread sends what was sampled to a separate process and waits for it there. A sample is
dropped while requests queue, while the process compares or rests, and while an equivalence check runs. The process
rests after each comparison, so that it takes at most a hundredth of one core.
"""

import logging
import math
import time
from collections import Counter
from functools import partial
from random import random
from typing import TYPE_CHECKING, Literal

import numpy as np

from fold.arrays import Arrays
from fold.errors import first_line
from fold.proof import Tally
from service.batching import Worker
from service.proof.comparer import Comparer, Comparison, DiedError, Task
from service.proof.references import References
from service.repository import Drop, Model

if TYPE_CHECKING:
    from fold.proof import Verdict

ROWS = 8
"""The first rows of a request that are compared."""
WAITING = 2
"""Responses that are being compared or wait for it."""
REST = 99
"""The rest after a comparison, as a multiple of the time that it took."""
LOG_SECONDS = 60.0
"""The least time between two warnings for one model."""
RESTARTS = 3
"""How often in a row the process that compares is started again, if it dies over one model: a reference that is too
large kills it every time, after seconds of importing PyTorch and loading."""

log = logging.getLogger("bnfold")


class ShadowSampler(Tally):
    """Samples the responses of one model and counts what the comparisons found. Only the event loop changes it."""

    def __init__(self, model: Model, checker: "ShadowChecker") -> None:
        super().__init__(model.manifest.verdict)
        self.share = 0.0
        """The share of responses that is compared; 0 until the reference is loaded."""
        self.drops: Counter[Drop] = Counter(dict.fromkeys(("load", "busy", "proof", "failed"), 0))
        self.deaths = 0
        """How often the process has died over this model since the last comparison."""
        self._model = model
        self._checker = checker
        self._silent_until = -math.inf

    def offer(self, inputs: Arrays, outputs: Arrays, rows: int) -> None:
        """Compare this response if it is sampled and there is no load. Nobody may write to the arrays from now on."""
        if random() >= self.share or not rows:
            return
        if self._model.batcher.queued_rows:
            self.drops["load"] += 1
        elif not self._checker.accept(self._model, self, inputs, outputs):
            self.drops["busy"] += 1

    def count(self, verdict: "Verdict") -> bool:
        agrees = super().count(verdict)
        if not agrees:
            self.warn(f"answers disagree with the reference: {verdict.message}")
        return agrees

    def warn(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + LOG_SECONDS
            log.warning("bnfold: model %s: %s", str(self._model), text)


class ShadowChecker:
    """Compares responses of all models, one at a time."""

    def __init__(self, share: float, references: References) -> None:
        self.share = share
        self._references = references
        self._comparer = Comparer()
        self._worker = Worker("shadow")
        self._under_way = 0
        self._rest_until = -math.inf
        self._stopped = False

    def add(self, model: Model) -> None:
        """Sample the responses of `model` from now on. Its reference is loaded in the background."""
        if not self.share:
            return
        model.observer = sampler = ShadowSampler(model, self)
        self._load(model, sampler)

    def remove(self, model: Model) -> None:
        """Stop sampling a model that is retired, and release its reference."""
        if model.observer is not None:
            model.observer = None
            digest = model.manifest.digest
            self._worker.submit(partial(self._comparer.forget, str(model), digest), lambda _: None)

    def accept(self, model: Model, sampler: ShadowSampler, inputs: Arrays, outputs: Arrays) -> bool:
        """Queue a comparison. False if enough are queued, or during a rest."""
        if self._under_way >= WAITING or time.monotonic() < self._rest_until:
            return False
        self._under_way += 1
        self._worker.submit(partial(self._compare, model, inputs, outputs), partial(self._finish, model, sampler))
        return True

    def stop(self) -> None:
        self._stopped = True
        self._worker.stop()
        self._comparer.stop()

    def _compare(self, model: Model, inputs: Arrays, outputs: Arrays) -> Comparison | None:
        """On the worker's thread. None while an equivalence check runs."""
        if self._references.lock.locked():
            return None
        rows = ROWS if model.signature.batched else None
        asked, answered = (
            {name: np.array(array[:rows] if rows else array) for name, array in arrays.items()}
            for arrays in (inputs, outputs)
        )
        return self._comparer.compare(_task(model, asked, answered))

    def _load(self, model: Model, sampler: ShadowSampler) -> None:
        self._worker.submit(partial(self._comparer.compare, _task(model)), partial(self._loaded, model, sampler))

    def _loaded(self, model: Model, sampler: ShadowSampler, loaded: Comparison | Exception) -> None:
        if self._stopped or model.observer is not sampler:  # it has been retired meanwhile
            return
        if isinstance(loaded, DiedError) and self._goes_on(model, sampler):
            self._load(model, sampler)
            return
        failure = first_line(loaded) if isinstance(loaded, Exception) else loaded.failure
        if failure:  # the model serves, even if its reference cannot be loaded here
            model.observer = None
            log.warning("bnfold: not comparing %s with its reference: %s", str(model), failure)
        else:
            sampler.share = self.share

    def _finish(self, model: Model, sampler: ShadowSampler, compared: Comparison | Exception | None) -> None:
        self._under_way -= 1
        if self._stopped:
            return
        if compared is None:
            sampler.drops["proof"] += 1
        elif isinstance(compared, Exception) or compared.verdict is None:
            failure = first_line(compared) if isinstance(compared, Exception) else compared.failure
            sampler.drops["failed"] += 1
            sampler.warn(f"an answer could not be compared: {failure}")
            if isinstance(compared, DiedError) and not self._goes_on(model, sampler):
                sampler.share = 0.0
                log.warning("bnfold: not comparing %s with its reference any more: %s", str(model), failure)
        else:
            sampler.deaths = 0
            sampler.count(compared.verdict)
        if isinstance(compared, Comparison):
            self._rest_until = max(self._rest_until, time.monotonic()) + REST * compared.seconds

    def _goes_on(self, model: Model, sampler: ShadowSampler) -> bool:
        """Whether the process is started again after it died over this model. Says so."""
        sampler.deaths += 1
        if sampler.deaths > RESTARTS:
            return False
        log.warning(
            "bnfold: the process that compares died over %s, perhaps for lack of memory; "
            "it is started again (%d of %d)",
            str(model),
            sampler.deaths,
            RESTARTS,
        )
        return True


def _task(model: Model, asked: Arrays | None = None, answered: Arrays | None = None) -> Task:
    version = model.session.version
    provider: Literal["cpu", "cuda"] = "cuda" if model.session.provider == "cuda" else "cpu"
    return Task(str(model), version.manifest.digest, version.path, provider, asked, answered)
