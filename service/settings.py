"""What a deployment may choose, from `BNFOLD_…` in the environment or from the command line; the latter wins.

Every default serves: nothing but the repository has to be said.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fold.errors import BnfoldError

LogFormat = Literal["text", "json"]

PREFIX = "BNFOLD_"
READ_ELSEWHERE = frozenset(
    {
        "publish", "grpc_publish", "target",  # docker-compose.yml
        "gpu_test_provider", "gpu_test_until",  # the tests on a GPU
    }
)  # fmt: skip
"""Variables with our prefix that are no settings of the service, without the prefix."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    repository: Path
    """Folder of NAME/VERSION model directories."""
    version_policy: Annotated[str, Field(pattern=r"^(latest(:[1-9][0-9]*)?|all|[1-9][0-9]*(,[1-9][0-9]*)*)$")] = (
        "latest"
    )
    """Which versions of a model serve: the latest that works, so many (`latest:2`), `all`, or those given (`2,5`)."""
    repository_control: Literal["fixed", "explicit", "watch"] = "fixed"
    """Who changes what serves: nobody, load and unload over HTTP, or the repository's folder."""
    watch_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Between two looks at the folder."""
    tokens: SecretStr | None = None
    """Tokens, separated by commas or spaces, of which requests must bring one; health stays open."""
    tokens_file: Path | None = None
    """A file with such tokens."""
    admin_token: SecretStr | None = None
    """Tokens for load and unload, which are good for everything else, too."""
    admin_token_file: Path | None = None
    metrics_need_token: bool = False
    """Whether /metrics asks for a token where other requests do."""
    host: str = "127.0.0.1"
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """URL prefix under which a proxy publishes the service, such as `/bnfold`; the proxy may take it away or not."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one, which the start line tells."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Of the same protocol over gRPC, which is off without one; 0 takes a free one."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """Where to compute: `cpu`, `cuda`, `cuda:1` for the second GPU; `auto` takes a GPU if there is one."""
    buckets: Annotated[str, Field(pattern=r"^(auto|off|[1-9][0-9]*(,[1-9][0-9]*)*)$")] = "auto"
    """Batch sizes that are run, each warmed up before the service is ready: powers of two on a GPU, those given
    (`1,8,64`; the largest batch is always one), or each batch as large as it is (`off`, and `auto` on the CPU)."""
    batches_in_flight: Annotated[int, Field(ge=0, le=16)] = 0
    """Batches of one model that run at a time; 0 is two on a GPU, of which one copies while the other computes. On the
    CPU it is one on all cores, or, where there are requests for every core, one on each; the weights of a model that is
    not short are then in memory twice. The next one is merged meanwhile."""
    conv_search: Literal["heuristic", "exhaustive"] = "heuristic"
    """How cuDNN finds its algorithm for a shape; `exhaustive` tries all, which takes long and may find a faster one."""
    cuda_graphs: bool = False
    """Record the kernels of each bucket once, and launch them as one."""
    nhwc: bool = False
    """Let the CUDA provider lay tensors out with the channels last."""
    gpu_memory_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """Of each model's arena on the GPU: not of weights, libraries and the buckets' buffers."""
    allow_cpu_nodes: bool = False
    """Serve a model on a GPU though some of its operators would compute on the CPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads inside one operator; 0 is two for models that run for less than a millisecond, and ONNX Runtime's choice
    for others."""
    spinning: bool = False
    """Let those threads spin after a run as long as ONNX Runtime likes, not for a millisecond: less latency for
    requests that come now and then, at the price of whole cores."""
    max_batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in one run."""
    max_request_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows in one request; beyond `max_batch_size` they are several runs."""
    queue_rows: Annotated[int, Field(ge=0)] = 1024
    """Rows that may wait for one model; what comes on top is answered with 429."""
    max_queue_delay_seconds: Annotated[float, Field(ge=0, le=10)] = 0.0
    """How long an idle model waits for more requests before it computes those that came; 0 never delays one."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request may wait in the queue, and how long stopping may take after the grace time."""
    grace_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long to go on serving after SIGTERM, not ready any more, for load balancers to notice."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Of a body, as it arrives and as it unpacks."""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 1 << 16
    """Of a request's head."""
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """At a time; who comes on top is answered with 503."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a client may take to send a request, or not to go on reading its answer."""
    keep_alive_seconds: Annotated[int, Field(ge=0)] = 75
    """How long a connection may be idle between two requests."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it the service speaks HTTPS only."""
    tls_key: Path | None = None
    """PEM file with its key."""
    max_json_depth: Annotated[int, Field(ge=4)] = 32
    max_samples: Annotated[int, Field(ge=1)] = 256
    """Rows of one equivalence check."""
    equivalence_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long an equivalence check may take, its wait included; one that takes longer is answered with 504."""
    log_format: LogFormat = "text"
    """Lines for people, or a JSON object a line."""
    access_log: bool = False
    """A line for each request, and its `X-Request-Id` in the answer."""
    tracing: bool = False
    """A span for each request by OpenTelemetry, which takes its own OTEL_… variables; needs `bnfold[otel]`."""
    cors_origins: str = ""
    """Origins whose pages may call the service, with commas between them, or `*`; none by default."""
    shadow: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the answered requests that are held against the reference in the background."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 1 << 25


def load_settings(**choices: Any) -> Settings:
    """Settings from `choices` (None is no choice), else from the environment, else the defaults.

    Raises `BnfoldError` for a value that does not fit, and for a name that no setting has: with a misspelt
    `BNFOLD_TOKENS` the service would be open to everybody.
    """
    _refuse_unknown({f"{PREFIX}{name.upper()}": name for name in _names_in_environment()})
    _refuse_unknown({name: name for name in choices})
    try:
        return Settings(**{name: value for name, value in choices.items() if value is not None})
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            came = "" if problem["type"] == "missing" else f", {problem['input']!r} came"
            problems.append(f"{name} (or BNFOLD_{name.upper()}): {problem['msg']}{came}")
        raise BnfoldError("settings: " + "; ".join(problems)) from None


def _names_in_environment() -> list[str]:
    """Names of variables with our prefix, in lower case and without it, but for those that others set or read."""
    given = {name.lower() for name in os.environ}
    # Kubernetes sets BNFOLD_X_SERVICE_HOST, BNFOLD_X_PORT and more in every pod for a Service named bnfold-x.
    services = [name.removesuffix("_service_host") for name in given if name.endswith("_service_host")]
    links = tuple(f"{service}_{part}" for service in services for part in ("service_", "port"))
    own = {name.removeprefix(PREFIX.lower()) for name in given if name.startswith(PREFIX.lower())}
    of_services = {name.removeprefix(PREFIX.lower()) for name in given if name.startswith(links)}
    return sorted(own - of_services - READ_ELSEWHERE)


def _refuse_unknown(names: dict[str, str]) -> None:
    """`names` are names of settings by how the user wrote them."""
    problems = []
    for written, name in names.items():
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0)[0]
            nearest = f"{PREFIX}{near.upper()}" if written != name else near
            problems.append(f"there is no {written}; the nearest name is {nearest}")
    if problems:
        raise BnfoldError("settings: " + "; ".join(problems))
