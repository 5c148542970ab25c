"""The service on Ray Serve: `service.ray:app` builds it from the arguments in Serve's configuration file.

A replica is the whole application of `create_app`, with its queue, batcher and refusals, mounted as it is. Ray Serve
has the port, routes requests, and starts, stops and multiplies replicas. A replica that can serve no model does not
start, and Serve's status says why.
"""

from math import ceil
from typing import Any

import ray
from ray import serve

from fold.errors import BnfoldError
from fold.runtime import gpu_memory, resolve_provider
from service.app import Application, create_app
from service.settings import Settings, load_settings
from service.telemetry import configure_logging

OF_THE_PROXY = frozenset(
    {
        "host", "port", "grpc_port", "root_path", "tls_certificate", "tls_key",
        "max_header_bytes", "keep_alive_seconds", "grace_seconds",
    }
)  # fmt: skip
"""Settings of a server, which is Ray's here."""
DRAIN_SECONDS = 30.0
"""How long a replica behind HAProxy serves on after it was told to stop: Ray's own default."""


def app(args: dict[str, Any]) -> serve.Application:
    """The application of Serve; `args` are settings by their names, which win over BNFOLD_… on the nodes.

    Raises `BnfoldError` for a setting that does not fit, and for one that Ray's proxy decides.
    """
    if refused := sorted(OF_THE_PROXY & args.keys()):
        raise BnfoldError(f"settings: {', '.join(refused)}: Ray's proxy decides that; see http_options in its file")
    settings = load_settings(**args)

    def build() -> Application:
        chosen = of_replica(load_settings(**args))
        configure_logging(chosen.log_format)
        application = create_app(chosen)
        application.load()
        return application

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="bnfold",
        max_ongoing_requests=settings.max_connections,  # our queue refuses what is too much; Serve's default is 5
        graceful_shutdown_timeout_s=DRAIN_SECONDS + settings.timeout_seconds,
    )
    return deployment.bind()


class Replica:
    """What Serve asks a replica for; `app` is the application, which `serve.ingress` sets."""

    app: Application

    def check_health(self) -> None:
        """Raises if the device is lost: then Serve starts another replica in place of this one."""
        if (lost := self.app.repository.lost()) is not None:
            raise RuntimeError(f"the device is lost: {lost}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For `ByRows`: rows that wait or are computed."""
        batchers = [model.batcher for model in self.app.repository.ready()]
        return {"rows": float(sum(batcher.queued_rows + batcher.running_rows for batcher in batchers))}


class ByRows:
    """Policy of Serve's autoscaler: so many replicas that each has `target_rows` rows that wait or are computed. Its
    delays and bounds apply."""

    def __init__(self, target_rows: float) -> None:
        self._target_rows = target_rows

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        reported = context.aggregated_metrics.get("rows", {})
        return ceil(sum(reported.values()) / self._target_rows) if reported else context.target_num_replicas, {}


def of_replica(settings: Settings) -> Settings:
    """The settings for the GPU, or the share of one, that Ray gave to this replica.

    Raises `BnfoldError` if the settings want a GPU and there is none.
    """
    share = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    if not share:
        if settings.device.startswith("cuda"):
            raise BnfoldError(f"device {settings.device}: this replica has no GPU; give it num_gpus in Serve's file")
        return settings.model_copy(update={"device": "cpu"})
    if share >= 1 or settings.gpu_memory_limit_bytes is not None or resolve_provider(settings.device) == "cpu":
        return settings
    return settings.model_copy(update={"gpu_memory_limit_bytes": int(share * gpu_memory(settings.device))})
