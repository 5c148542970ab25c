"""Metrics of the GPUs that serve, memory and utilisation: read from the driver's library (NVML, by nvidia-ml-py)."""

import logging
from collections.abc import Iterator
from types import ModuleType

from prometheus_client.core import GaugeMetricFamily, Metric

from fold.runtime import pci_bus_id
from service.repository import Repository

log = logging.getLogger("bnfold")


class GpuCollector:
    """Collects for every scrape. Without a model on a GPU, or without NVML, there are no such metrics, and the service
    serves all the same."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._nvml: ModuleType | None = None
        self._failed = False

    def collect(self) -> Iterator[Metric]:
        numbers = {m.session.placement.device for m in self._repository.ready() if m.session.provider == "cuda"}
        if not numbers or self._failed:
            return
        used = GaugeMetricFamily(
            "bnfold_gpu_memory_used_bytes", "Memory in use on the GPU, by all processes", labels=["gpu"]
        )
        total = GaugeMetricFamily("bnfold_gpu_memory_total_bytes", "Memory of the GPU", labels=["gpu"])
        busy = GaugeMetricFamily(
            "bnfold_gpu_utilization_ratio", "Share of the last sample period in which a kernel ran", labels=["gpu"]
        )
        try:
            nvml = self._open()
            for number in sorted(numbers):
                # NVML numbers all devices of the machine, CUDA the visible ones, so devices are matched by PCI address
                handle = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(number))
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                used.add_metric((str(number),), memory.used)
                total.add_metric((str(number),), memory.total)
                busy.add_metric((str(number),), nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        except Exception as error:  # NVML's own class, or others if the driver is broken
            self._failed = True
            log.warning("bnfold: no GPU metrics: %s", error)
            return
        yield from (used, total, busy)

    def _open(self) -> ModuleType:
        if self._nvml is None:
            import pynvml  # noqa: PLC0415  # only where a GPU serves

            pynvml.nvmlInit()
            self._nvml = pynvml
        return self._nvml
