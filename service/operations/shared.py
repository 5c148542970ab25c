"""What the application makes once, and every endpoint of both transports works with."""

from dataclasses import dataclass

from service.access import Access
from service.budget import Budget
from service.operations.turns import Turns
from service.repository import Repository
from service.settings import Settings
from service.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Shared:
    settings: Settings
    repository: Repository
    metrics: Metrics
    access: Access
    budget: Budget
    turns: Turns
