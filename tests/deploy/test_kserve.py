"""What deploy/kserve tells Kubernetes is what the command line, the service and docker-compose.yml have."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import fold.cli
from service.app import create_app
from service.settings import Settings, load_settings
from support import ROOT

FOLDER = ROOT / "deploy" / "kserve"
RUNTIME = yaml.safe_load((FOLDER / "runtime.yaml").read_text())
SERVICE = yaml.safe_load((FOLDER / "service.yaml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["serve-gpu"]
[CONTAINER] = RUNTIME["spec"]["containers"]
ENVIRONMENT = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the container would read them from its arguments and its environment."""
    for name, value in ENVIRONMENT.items():
        assert name.removeprefix("BNFOLD_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    group: Any = typer.main.get_command(fold.cli.app)
    name, *arguments = CONTAINER["args"]
    command = group.commands[name]
    chosen: dict[str, Any] = command.make_context(name, list(arguments)).params
    return load_settings(**{name: chosen[name] for name in ("repository", "host", "port")})


def test_the_arguments_are_those_of_the_command_line(settings: Settings) -> None:
    # KServe puts what storageUri names there
    assert settings.repository == Path("/mnt/models")
    assert settings.host == "0.0.0.0"
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [settings.port]
    assert settings.grpc_port is None
    assert RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"] == str(settings.port)
    assert settings.device == "cuda"
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live")]
)
def test_the_probes_ask_what_the_service_answers(probe: str, path: str, settings: Settings, tmp_path: Path) -> None:
    asked = CONTAINER[probe]["httpGet"]
    assert asked == {"path": f"/v2/health/{path}", "port": settings.port}
    assert asked["path"] in create_app(Settings(repository=tmp_path)).openapi()["paths"]


def test_metrics_are_where_they_are_looked_for(tmp_path: Path) -> None:
    path = RUNTIME["spec"]["annotations"]["prometheus.kserve.io/path"]
    assert path in create_app(Settings(repository=tmp_path)).openapi()["paths"]


def test_it_is_confined_as_in_compose() -> None:
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"] is COMPOSE["read_only"]
    assert context["capabilities"]["drop"] == COMPOSE["cap_drop"]
    assert context["allowPrivilegeEscalation"] is ("no-new-privileges:true" not in COMPOSE["security_opt"])
    assert context["runAsNonRoot"] is True
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    [mount] = CONTAINER["volumeMounts"]
    [volume] = RUNTIME["spec"]["volumes"]
    assert (mount["mountPath"], volume["name"]) == ("/tmp", mount["name"])
    assert volume["emptyDir"]["medium"] == "Memory"


def test_a_pod_has_time_to_answer_what_it_accepted(settings: Settings) -> None:
    predictor = SERVICE["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > settings.grace_seconds + settings.timeout_seconds


def test_the_service_asks_for_the_runtime() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"] in [
        {key: supported[key] for key in ("name", "version")} for supported in RUNTIME["spec"]["supportedModelFormats"]
    ]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
