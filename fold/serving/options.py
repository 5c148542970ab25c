"""The options of a session that serves. The service takes them from its settings; their defaults are here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a version is opened. `service.settings` says what each option does; the names are the same there."""

    device: str = "auto"
    buckets: str = "auto"
    batches_in_flight: int = 0
    conv_search: Literal["heuristic", "exhaustive"] = "heuristic"
    cuda_graphs: bool = False
    nhwc: bool = False
    gpu_memory_limit_bytes: int | None = None
    allow_cpu_nodes: bool = False
    threads: int = 0
    spinning: bool = False
    max_batch_size: int = 64
