"""Watching: a share of the answers is held against the reference, in the background, on the very arrays that went out.

No answer waits for it. What is drawn goes to a process of its own, by way of a thread that waits for it there, and is
dropped where anything else has work to do: while requests queue, while the process compares or rests, while a proof
runs. It rests so long after each comparison that it takes at most a hundredth of one core.
"""

import logging
import math
import time
from collections import Counter, deque
from functools import partial
from random import random
from typing import TYPE_CHECKING, Literal

import numpy as np

from fold.arrays import Arrays
from fold.errors import first_line
from service.batching import Worker
from service.proof.comparer import Compared, Comparer, Task
from service.proof.references import References
from service.repository import Disagreement, Drop, Model

if TYPE_CHECKING:
    from fold.proof import OutputVerdict, Verdict

ROWS = 8
"""Of a request, the first so many are compared."""
WAITING = 2
"""Answers that are being compared or wait for it."""
REST = 99
"""How many times as long as it compared the thread rests."""
WINDOW = 64
"""Comparisons whose largest limit holds for the next."""
LOG_SECONDS = 60.0
"""Between two warnings of one model."""

log = logging.getLogger("bnfold")


class ShadowSampler:
    """What watching has found of one model. Only the event loop changes it."""

    def __init__(self, model: Model, watcher: "ShadowChecker") -> None:
        self.share = 0.0
        """Of the answers; 0 until the reference is at hand."""
        self.rows = 0
        self.disagreements: Counter[Disagreement] = Counter({"error": 0, "decision": 0})
        self.drops: Counter[Drop] = Counter(dict.fromkeys(("load", "busy", "proof", "failed"), 0))
        self.error_ratio = 0.0
        """The largest error over its limit; infinite where an error has no size."""
        self._model = model
        self._watcher = watcher
        self._limits: dict[str, deque[float]] = {}
        self._proven = {output["name"]: output["limit"] or 0.0 for output in model.manifest.verdict.get("outputs", ())}
        self._silent_until = -math.inf

    def offer(self, inputs: Arrays, outputs: Arrays, rows: int) -> None:
        """Compare this answer if chance and load will have it. Nobody may write to the arrays from now on."""
        if random() >= self.share or not rows:
            return
        if self._model.batcher.queued_rows:
            self.drops["load"] += 1
        elif not self._watcher.take(self._model, self, inputs, outputs):
            self.drops["busy"] += 1

    def add(self, verdict: "Verdict") -> None:
        self.rows += verdict.samples
        ratios = [self._ratio(output) for output in verdict.outputs]
        self.error_ratio = max(self.error_ratio, *ratios)
        wrong = any(ratio > 1 for ratio in ratios)
        self.disagreements["error"] += wrong
        self.disagreements["decision"] += not all(verdict.decisions)
        if wrong or not all(verdict.decisions):
            self.warn(f"answers disagree with the reference: {verdict.message}")

    def warn(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + LOG_SECONDS
            log.warning("bnfold: model %s: %s", self._model, text)

    def _ratio(self, output: "OutputVerdict") -> float:
        """Error over limit. One row may happen to have almost no rounding of its own, so the limit is the largest of
        the last comparisons and of the certificate: they judge as one set of inputs."""
        limits = self._limits.setdefault(output.name, deque(maxlen=WINDOW))
        limits.append(output.limit)
        if not output.equivalent and not output.folded_error > output.limit:  # NaN, or finite where the truth is not
            return math.inf
        limit = max(*limits, self._proven.get(output.name, 0.0))
        return output.folded_error / limit if limit else math.inf if output.folded_error else 0.0


class ShadowChecker:
    """Compares for all models, one answer at a time."""

    def __init__(self, share: float, references: References) -> None:
        self.share = share
        self._references = references
        self._comparer = Comparer()
        self._worker = Worker("shadow")
        self._under_way = 0
        self._rest_until = -math.inf

    def watch(self, model: Model) -> None:
        """Watch `model` from now on. Its reference is loaded in the background, for no request shall wait for it."""
        if not self.share:
            return
        model.observer = ShadowSampler(model, self)
        self._worker.submit(partial(self._comparer.compare, _task(model)), partial(self._loaded, model))

    def forget(self, model: Model) -> None:
        """Let the reference of a model go that serves no more."""
        if model.observer is not None:
            model.observer = None
            digest = model.manifest.digest
            self._worker.submit(partial(self._comparer.forget, str(model), digest), lambda _: None)

    def take(self, model: Model, watched: ShadowSampler, inputs: Arrays, outputs: Arrays) -> bool:
        """False if there is enough to do, or a rest to take."""
        if self._under_way >= WAITING or time.monotonic() < self._rest_until:
            return False
        self._under_way += 1
        self._worker.submit(partial(self._compare, model, inputs, outputs), partial(self._finish, watched))
        return True

    def stop(self) -> None:
        self._worker.stop()
        self._comparer.stop()

    def _compare(self, model: Model, inputs: Arrays, outputs: Arrays) -> Compared | None:
        """On the worker's thread. None while a proof runs."""
        if self._references.lock.locked():
            return None
        rows = ROWS if model.session.signature.batched else None
        asked, answered = (
            {name: np.array(array[:rows] if rows else array) for name, array in arrays.items()}
            for arrays in (inputs, outputs)
        )
        return self._comparer.compare(_task(model, asked, answered))

    def _loaded(self, model: Model, loaded: Compared | Exception) -> None:
        failure = first_line(loaded) if isinstance(loaded, Exception) else loaded.failure
        if failure:  # a model serves all the same whose reference is beyond this machine
            model.observer = None
            log.warning("bnfold: not watching %s: %s", model, failure)
        elif model.observer is not None:
            model.observer.share = self.share

    def _finish(self, watched: ShadowSampler, compared: Compared | Exception | None) -> None:
        self._under_way -= 1
        if compared is None:
            watched.drops["proof"] += 1
        elif isinstance(compared, Exception) or compared.verdict is None:
            failure = first_line(compared) if isinstance(compared, Exception) else compared.failure
            watched.drops["failed"] += 1
            watched.warn(f"an answer could not be compared: {failure}")
        else:
            watched.add(compared.verdict)
        if isinstance(compared, Compared):
            self._rest_until = max(self._rest_until, time.monotonic()) + REST * compared.seconds


def _task(model: Model, asked: Arrays | None = None, answered: Arrays | None = None) -> Task:
    version = model.session.version
    provider: Literal["cpu", "cuda"] = "cuda" if model.session.provider == "cuda" else "cpu"
    return Task(str(model), version.manifest.digest, version.path, provider, asked, answered)
