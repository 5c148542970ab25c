"""ONNX Runtime and the machine that it runs on: sessions, devices, memory."""

import os
from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.runtime.cgroups import control_groups
    from fold.runtime.cpus import cores, physical_cores, stop_spinning, thread_limits
    from fold.runtime.devices import (
        PROVIDERS,
        Provider,
        ProviderUnavailableError,
        ask_device,
        device_number,
        gpu_memory,
        loaded_cudnn,
        loaded_library,
        pci_bus_id,
        resolve_provider,
    )
    from fold.runtime.machine import Machine, this_machine, tool_versions
    from fold.runtime.memory import collect_once, release_memory, resident_bytes, return_freed
    from fold.runtime.running import ended_by, in_flight, run_options
    from fold.runtime.session import (
        SPIN_MICROSECONDS,
        CudaOptions,
        computed_elsewhere,
        open_graph,
        open_session,
        optimised_operators,
        placement,
        provider_of,
        run,
        runtime_code,
        runtime_reason,
        without_runtime_words,
    )
    from fold.runtime.start import start_tuned
    from fold.runtime.trial import CannotLoadError, Trial, TrialKind

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is first imported

__all__ = [
    "PROVIDERS",
    "SPIN_MICROSECONDS",
    "CannotLoadError",
    "CudaOptions",
    "Machine",
    "Provider",
    "ProviderUnavailableError",
    "Trial",
    "TrialKind",
    "ask_device",
    "collect_once",
    "computed_elsewhere",
    "control_groups",
    "cores",
    "device_number",
    "ended_by",
    "gpu_memory",
    "in_flight",
    "loaded_cudnn",
    "loaded_library",
    "open_graph",
    "open_session",
    "optimised_operators",
    "pci_bus_id",
    "physical_cores",
    "placement",
    "provider_of",
    "release_memory",
    "resident_bytes",
    "resolve_provider",
    "return_freed",
    "run",
    "run_options",
    "runtime_code",
    "runtime_reason",
    "start_tuned",
    "stop_spinning",
    "this_machine",
    "thread_limits",
    "tool_versions",
    "without_runtime_words",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CudaOptions": "session",
        "Machine": "machine",
        "PROVIDERS": "devices",
        "Provider": "devices",
        "ProviderUnavailableError": "devices",
        "SPIN_MICROSECONDS": "session",
        "CannotLoadError": "trial",
        "Trial": "trial",
        "TrialKind": "trial",
        "ask_device": "devices",
        "collect_once": "memory",
        "computed_elsewhere": "session",
        "control_groups": "cgroups",
        "cores": "cpus",
        "device_number": "devices",
        "ended_by": "running",
        "gpu_memory": "devices",
        "in_flight": "running",
        "loaded_cudnn": "devices",
        "loaded_library": "devices",
        "open_graph": "session",
        "open_session": "session",
        "optimised_operators": "session",
        "pci_bus_id": "devices",
        "physical_cores": "cpus",
        "placement": "session",
        "provider_of": "session",
        "release_memory": "memory",
        "resident_bytes": "memory",
        "resolve_provider": "devices",
        "return_freed": "memory",
        "run": "session",
        "run_options": "running",
        "runtime_code": "session",
        "runtime_reason": "session",
        "start_tuned": "start",
        "stop_spinning": "cpus",
        "this_machine": "machine",
        "thread_limits": "cpus",
        "tool_versions": "machine",
        "without_runtime_words": "session",
    },
)
