"""Settings of the service, from `BNFOLD_…` in the environment or from the command line, which has priority.

Only the repository has no default.
"""

import difflib
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fold.artifact import NAME_PATTERN
from fold.errors import BnfoldError
from fold.remote import DEFAULT_BYTES, default_folder, is_url
from fold.serving import SessionOptions

LogFormat = Literal["text", "json"]

PREFIX = "BNFOLD_"
DEFAULTS = SessionOptions()
READ_ELSEWHERE = frozenset(
    {
        "publish", "grpc_publish", "target",  # docker-compose.yml
        "max_unpacked_bytes", "max_nodes", "max_run_seconds", "max_input_elements",
        "max_evaluation_seconds",  # fold, for files that it reads
        "gpu_test_provider", "gpu_test_until", "gpu_test_report", "fuzz_examples",  # tests
    }
)  # fmt: skip
"""Variables with our prefix that are no settings of the service, without the prefix."""


def _folder_or_url(given: Path | str) -> Path | str:
    return given if is_url(given) else Path(given)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    repository: Annotated[Path | str, BeforeValidator(_folder_or_url)]
    """Folder of NAME/VERSION model directories, or its URL: s3://, gs://, https://."""
    cache: Path = Field(default_factory=default_folder)
    """Folder for what is downloaded from a repository behind a URL."""
    max_cache_bytes: Annotated[int, Field(ge=0)] = DEFAULT_BYTES
    """Of the versions in it. Those that were used longest ago are removed, and none that is in use."""
    models: Annotated[str, Field(pattern=rf"^(\*|{NAME_PATTERN.pattern}(,{NAME_PATTERN.pattern})*)?$")] = ""
    """Models that are loaded at the start, separated by commas, or `*` for all. With nothing given, all are, unless
    `repository_control` is `explicit`: then none is, and calls load them."""
    version_policy: Annotated[str, Field(pattern=r"^(latest(:[1-9][0-9]*)?|all|[1-9][0-9]*(,[1-9][0-9]*)*)$")] = (
        "latest"
    )
    """Versions of a model that serve: the latest that works, several (`latest:2`), `all`, or those given (`2,5`)."""
    repository_control: Literal["fixed", "explicit", "watch"] = "fixed"
    """How the models that serve change: not at all, by load and unload over HTTP, or with the repository's folder."""
    watch_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Between two polls of the folder."""
    tokens: SecretStr | None = None
    """Tokens, separated by commas or spaces; requests must bring one of them, except for health."""
    tokens_file: Path | None = None
    """A file with such tokens."""
    admin_token: SecretStr | None = None
    """Tokens for load and unload; they are valid for everything else, too."""
    admin_token_file: Path | None = None
    metrics_need_token: bool = False
    """Whether /metrics needs a token where other requests do."""
    host: str = "127.0.0.1"
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """URL prefix under which a proxy publishes the service, such as `/bnfold`; the proxy may remove it or not."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one; the start line shows it."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the same protocol over gRPC, which is off without one; 0 takes a free one."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = DEFAULTS.device
    """The device: `cpu`, `cuda`, `cuda:1` for the second GPU; `auto` takes a GPU if there is one."""
    buckets: Annotated[str, Field(pattern=r"^(auto|off|[1-9][0-9]*(,[1-9][0-9]*)*)$")] = DEFAULTS.buckets
    """Batch sizes that are run, each warmed up before the service is ready. `auto`: powers of two on a GPU, any size on
    the CPU. `1,8,64`: these, and always the largest batch. `off`: any size."""
    batches_in_flight: Annotated[int, Field(ge=0, le=16)] = DEFAULTS.batches_in_flight
    """Batches of one model that run at a time. 0 is two on a GPU: one copies while the other computes. On the CPU 0 is
    one batch on all cores, or, where there are requests for every core, one on each core; the weights of a model that
    takes more than a millisecond are then in memory twice. The next batch is merged while others run."""
    conv_search: Literal["heuristic", "exhaustive"] = DEFAULTS.conv_search
    """How cuDNN chooses its algorithm for a shape: by its heuristic's mode A, or by mode B (`exhaustive`), which takes
    longer and may find a faster one. ONNX Runtime 1.31 tries none."""
    cuda_graphs: bool = DEFAULTS.cuda_graphs
    """Record the kernels of each bucket once, and launch them as one."""
    nhwc: bool = DEFAULTS.nhwc
    """Let the CUDA provider store tensors with the channels last."""
    gpu_memory_limit_bytes: Annotated[int, Field(ge=1)] | None = DEFAULTS.gpu_memory_limit_bytes
    """Of the arena of each session on the GPU; weights, libraries and the buckets' buffers are not counted. A model
    with convolutions has a session for each bucket."""
    allow_cpu_nodes: bool = DEFAULTS.allow_cpu_nodes
    """Serve a model on a GPU even if some of its operators compute on the CPU."""
    threads: Annotated[int, Field(ge=0)] = DEFAULTS.threads
    """Threads inside one operator; 0 is two for models that take less than a millisecond, and for others one for each
    core that this process may use."""
    spinning: bool = DEFAULTS.spinning
    """Let these threads spin after a run as long as ONNX Runtime does by default, not for a millisecond: less latency
    for rare requests, but whole cores are busy."""
    max_batch_size: Annotated[int, Field(ge=1)] = DEFAULTS.max_batch_size
    """Rows in one run."""
    max_request_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows in one request; more than `max_batch_size` are several runs."""
    queue_rows: Annotated[int, Field(ge=0)] = 1024
    """Rows that may wait for one model; further requests are answered with 429."""
    max_queue_delay_seconds: Annotated[float, Field(ge=0, le=10)] = 0.0
    """How long an idle model waits for more requests before it computes; 0 never delays a request."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request may wait in the queue, and how long stopping may take after the grace time."""
    readiness: Literal["lenient", "strict"] = "lenient"
    """Whether the service is ready while it serves (`lenient`), or only while no version is broken (`strict`)."""
    grace_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long to serve on after SIGTERM while not ready, so that load balancers notice."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Of a body, both as received and as uncompressed."""
    max_bytes_in_flight: Annotated[int, Field(ge=0)] = 0
    """Of all requests together: bodies, what they unpack to, tensors read from JSON, strings, decoded images; further
    requests are answered with 503. 0 is a quarter of the memory that the container, the machine or RLIMIT_AS gives."""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 1 << 16
    """Of a request's head."""
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """At a time; further clients are answered with 503."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a client may take to send a request, or may stop reading its answer."""
    keep_alive_seconds: Annotated[int, Field(ge=0)] = 75
    """How long a connection may be idle between two requests."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it the service uses HTTPS only."""
    tls_key: Path | None = None
    """PEM file with its key."""
    max_json_depth: Annotated[int, Field(ge=4)] = 32
    max_samples: Annotated[int, Field(ge=1)] = 256
    """Rows of one equivalence check."""
    equivalence_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long an equivalence check may take, including its wait; one that takes longer is answered with 504."""
    log_format: LogFormat = "text"
    """Plain lines, or a JSON object a line."""
    access_log: bool = False
    """A line for each request, and its `X-Request-Id` in the answer."""
    tracing: bool = False
    """A span for each request by OpenTelemetry, which reads its OTEL_… variables; needs `bnfold[otel]`."""
    cors_origins: str = ""
    """Origins whose pages may call the service, separated by commas, or `*`; none by default."""
    shadow: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the responses that are compared with the reference in the background."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 1 << 25

    @property
    def chosen_models(self) -> frozenset[str] | None:
        """Names of the models that are loaded at the start and polled; None for all of them."""
        if self.models == "*" or (not self.models and self.repository_control != "explicit"):
            return None
        return frozenset(filter(None, self.models.split(",")))

    @property
    def session_options(self) -> SessionOptions:
        """The settings that say how a version is opened."""
        return SessionOptions(**{field.name: getattr(self, field.name) for field in fields(SessionOptions)})


def load_settings(**choices: Any) -> Settings:
    """Settings from `choices` (None is no choice), else from the environment, else the defaults.

    Raises `BnfoldError` for a value that does not fit, and for a name that no setting has: with a misspelt
    `BNFOLD_TOKENS` the service would be open to everybody.
    """
    refuse_unknown_variables()
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


def refuse_unknown_variables() -> None:
    """Raise `BnfoldError` for a `BNFOLD_…` variable that nothing of bnfold reads: it is likely misspelt."""
    _refuse_unknown({f"{PREFIX}{name.upper()}": name for name in _names_in_environment()})


def _names_in_environment() -> list[str]:
    """Names of variables with our prefix, in lower case and without it, but for those that others set or read."""
    given = {name.lower() for name in os.environ}
    # Kubernetes sets BNFOLD_X_SERVICE_HOST, BNFOLD_X_PORT and more in every pod for a Service named bnfold-x.
    services = [name.removesuffix("_service_host") for name in given if name.endswith("_service_host")]
    links = tuple(f"{service}_{part}" for service in services for part in ("service_", "port"))
    ours = {name.removeprefix(PREFIX.lower()) for name in given if name.startswith(PREFIX.lower())}
    of_services = {name.removeprefix(PREFIX.lower()) for name in given if name.startswith(links)}
    return sorted(ours - of_services - READ_ELSEWHERE)


def _refuse_unknown(names: dict[str, str]) -> None:
    """`names` are names of settings by how the user wrote them."""
    problems = []
    for written, name in names.items():
        if name not in Settings.model_fields:
            variable = written != name
            known = [*Settings.model_fields, *(READ_ELSEWHERE if variable else ())]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            nearest = f"{PREFIX}{near.upper()}" if variable else near
            problems.append(f"there is no {written}; the nearest name is {nearest}")
    if problems:
        raise BnfoldError("settings: " + "; ".join(problems))
