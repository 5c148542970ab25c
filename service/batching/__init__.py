"""The queue in front of one model: requests become batches, batches become answers."""

from service.batching.batcher import Batcher
from service.batching.lane import Lane
from service.batching.merging import BatchStats, Outcome
from service.batching.policy import BatchPolicy
from service.batching.ticket import Ticket
from service.batching.worker import Worker, on_thread

__all__ = ["BatchPolicy", "BatchStats", "Batcher", "Lane", "Outcome", "Ticket", "Worker", "on_thread"]
