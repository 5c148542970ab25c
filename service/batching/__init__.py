"""The queue in front of one model: requests become batches, batches become answers."""

from service.batching.batcher import INLINE_SECONDS, Batcher
from service.batching.lane import Lane
from service.batching.merging import BatchStats, Outcome
from service.batching.ticket import Ticket
from service.batching.worker import Worker, on_thread

__all__ = ["INLINE_SECONDS", "BatchStats", "Batcher", "Lane", "Outcome", "Ticket", "Worker", "on_thread"]
