"""Which settings of batching apply to a model: on a CPU or on a GPU."""

from dataclasses import dataclass

from service.settings import Settings

INLINE_SECONDS = 0.0002
"""How long a run of one row may keep the event loop; a longer one is worth the hop to the thread."""
PREFETCH_SHARE = 2
"""While a batch is computed on the CPU, the next one is merged once it has the largest batch's rows over this: enough
for it to run about as fast as a full one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """`for_cpu` and `for_gpu` choose what suits the device. All times in seconds."""

    max_batch_size: int
    """Rows of one run."""
    queue_rows: int
    """Rows that may wait."""
    timeout: float
    """How long a request may wait."""
    max_queue_delay: float = 0.0
    """How long an idle worker waits for more requests."""
    batched: bool = True
    """Whether requests can be merged; otherwise each is a run of its own."""
    inline_seconds: float = INLINE_SECONDS
    """How long a run of one row may keep the event loop; 0 keeps all runs on the threads."""
    in_flight: int = 1
    """Batches that run at a time, each on a thread of its own."""
    prefetch_rows: int = 0
    """One batch more is merged while others run, once it has so many rows; 0 for never."""
    single_core_runs: int = 0
    """From so many requests on, so many batches run at a time, each on one core; no fewer than `in_flight`, 0 for
    never. How many rows are worth a prefetch then depends on how many wait."""

    @classmethod
    def for_cpu(cls, settings: Settings, *, batched: bool, in_flight: int, single_core_runs: int) -> "BatchPolicy":
        """Fast runs happen in the event loop; the next batch is merged while one is computed."""
        return cls(
            max_batch_size=settings.max_batch_size,
            queue_rows=settings.queue_rows,
            timeout=settings.timeout_seconds,
            max_queue_delay=settings.max_queue_delay_seconds,
            batched=batched,
            in_flight=in_flight,
            prefetch_rows=settings.max_batch_size // PREFETCH_SHARE,
            single_core_runs=single_core_runs,
        )

    @classmethod
    def for_gpu(cls, settings: Settings, *, batched: bool, in_flight: int) -> "BatchPolicy":
        """The event loop never waits for the device."""
        return cls(
            max_batch_size=settings.max_batch_size,
            queue_rows=settings.queue_rows,
            timeout=settings.timeout_seconds,
            max_queue_delay=settings.max_queue_delay_seconds,
            batched=batched,
            inline_seconds=0.0,
            in_flight=in_flight,
        )

    @property
    def threads(self) -> int:
        """Those that compute."""
        return max(self.in_flight, self.single_core_runs)

    @property
    def prefetches(self) -> bool:
        """Whether a thread more is needed, which merges the next batch."""
        return bool(self.prefetch_rows or self.single_core_runs)

    @property
    def largest_request(self) -> int:
        """Rows of one request that can be taken when nothing else is queued."""
        return max(self.max_batch_size, self.queue_rows) if self.batched else 1
