"""Metrics of the GPUs that serve, memory and utilisation: read from the driver's library (NVML, by nvidia-ml-py)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from prometheus_client.core import GaugeMetricFamily, Metric

from fold.runtime import pci_bus_id
from service.repository import Repository

log = logging.getLogger("bnfold")


@dataclass(frozen=True, slots=True)
class GpuState:
    """Bytes in use by all processes, bytes in all, and the share of the last sample period in which a kernel ran."""

    number: int
    used: int
    total: int
    busy: float


class GpuCollector:
    """Collects for every scrape. Without a model on a GPU, or without NVML, there are no such metrics, and the service
    serves all the same."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._nvml: ModuleType | None = None
        self._failed = False

    @property
    def numbers(self) -> set[int]:
        """Of the GPUs that serve; empty after NVML has failed."""
        serving = (model.session for model in self._repository.ready() if model.session.provider == "cuda")
        return set() if self._failed else {session.placement.device for session in serving}

    def read(self, numbers: set[int]) -> list[GpuState]:
        """The GPUs of these numbers, ascending; empty if NVML fails. May be called by any thread."""
        found = []
        try:
            nvml = self._open()
            for number in sorted(numbers):
                # NVML numbers all devices of the machine, CUDA the visible ones, so devices are matched by PCI address
                handle = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(number))
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                found.append(GpuState(number, memory.used, memory.total, busy))
        except Exception as error:  # NVML's own class, or others if the driver is broken
            self._failed = True
            log.warning("bnfold: no GPU metrics: %s", error)
            return []
        return found

    def collect(self) -> Iterator[Metric]:
        numbers = self.numbers
        states = self.read(numbers) if numbers else []
        if not states:
            return
        used = GaugeMetricFamily(
            "bnfold_gpu_memory_used_bytes", "Memory in use on the GPU, by all processes", labels=["gpu"]
        )
        total = GaugeMetricFamily("bnfold_gpu_memory_total_bytes", "Memory of the GPU", labels=["gpu"])
        busy = GaugeMetricFamily(
            "bnfold_gpu_utilization_ratio", "Share of the last sample period in which a kernel ran", labels=["gpu"]
        )
        for state in states:
            for family, value in ((used, state.used), (total, state.total), (busy, state.busy)):
                family.add_metric((str(state.number),), value)
        yield from (used, total, busy)

    def _open(self) -> ModuleType:
        if self._nvml is None:
            import pynvml  # noqa: PLC0415  # only where a GPU serves

            pynvml.nvmlInit()
            self._nvml = pynvml
        return self._nvml
