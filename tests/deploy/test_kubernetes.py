"""What deploy/kserve and deploy/kubernetes tell a cluster is what the command line, the service and docker-compose.yml
have, and what Kubernetes and KEDA take."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

import fold.cli
from benchmarks.replicas import Scaling
from service.app import create_app
from service.settings import Settings, load_settings
from support import ROOT

DEPLOY = ROOT / "deploy"
RUNTIME = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_text())
SERVICE = yaml.safe_load((DEPLOY / "kserve" / "service.yaml").read_text())
DEPLOYMENT, BALANCER, BUDGET = yaml.safe_load_all((DEPLOY / "kubernetes" / "bnfold.yaml").read_text())
SCALED = yaml.safe_load((DEPLOY / "kubernetes" / "scaledobject.yaml").read_text())
BEHAVIOR = SCALED["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
SCHEMAS = json.loads((ROOT / "tests" / "data" / "kubernetes.json").read_text())
KEDA = json.loads((ROOT / "tests" / "data" / "keda.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["serve-gpu"]

POD = DEPLOYMENT["spec"]["template"]
PODS: dict[str, dict[str, Any]] = {"kserve": RUNTIME["spec"], "kubernetes": POD["spec"]}
GRACE = {
    "kserve": SERVICE["spec"]["predictor"]["terminationGracePeriodSeconds"],
    "kubernetes": POD["spec"]["terminationGracePeriodSeconds"],
}
REPOSITORIES = {"kserve": "/mnt/models", "kubernetes": "/models"}
"""KServe puts what storageUri names there."""


@pytest.fixture(params=["kserve", "kubernetes"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def container(name: str) -> dict[str, Any]:
    [only] = PODS[name]["containers"]
    return dict(only)


@pytest.fixture
def settings(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the container would read them from its arguments and its environment."""
    for variable in container["env"]:
        assert variable["name"].removeprefix("BNFOLD_").lower() in Settings.model_fields
        monkeypatch.setenv(variable["name"], variable["value"])
    group: Any = typer.main.get_command(fold.cli.app)
    name, *arguments = container["args"]
    command = group.commands[name]
    chosen: dict[str, Any] = command.make_context(name, list(arguments)).params
    return load_settings(**{name: chosen[name] for name in ("repository", "host", "port")})


def test_the_arguments_are_those_of_the_command_line(name: str, container: dict[str, Any], settings: Settings) -> None:
    assert settings.repository == Path(REPOSITORIES[name])
    assert settings.host == "0.0.0.0"
    ports = [port for port in (settings.port, settings.grpc_port) if port is not None]
    assert [port["containerPort"] for port in container["ports"]] == ports
    assert settings.device == ("cuda" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu")


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live")]
)
def test_the_probes_ask_what_the_service_answers(
    probe: str, path: str, container: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    asked = container[probe]["httpGet"]
    assert asked == {"path": f"/v2/health/{path}", "port": settings.port}
    assert asked["path"] in create_app(Settings(repository=tmp_path)).openapi()["paths"]


def test_metrics_are_where_they_are_looked_for(name: str, settings: Settings, tmp_path: Path) -> None:
    annotations = (RUNTIME["spec"] if name == "kserve" else POD["metadata"])["annotations"]
    prefix = "prometheus.kserve.io" if name == "kserve" else "prometheus.io"
    assert annotations[f"{prefix}/path"] in create_app(Settings(repository=tmp_path)).openapi()["paths"]
    assert annotations[f"{prefix}/port"] == str(settings.port)


def test_it_is_confined_as_in_compose(name: str, container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is COMPOSE["read_only"]
    assert context["capabilities"]["drop"] == COMPOSE["cap_drop"]
    assert context["allowPrivilegeEscalation"] is ("no-new-privileges:true" not in COMPOSE["security_opt"])
    assert context["runAsNonRoot"] is True
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    volumes = {volume["name"]: volume for volume in PODS[name]["volumes"]}
    for mount in container["volumeMounts"]:
        if mount["mountPath"] == "/tmp":
            assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"
        else:
            assert (mount["mountPath"], mount["readOnly"]) == (REPOSITORIES[name], True)


def test_a_pod_has_time_to_answer_what_it_accepted(name: str, settings: Settings) -> None:
    assert GRACE[name] > settings.grace_seconds + settings.timeout_seconds


def test_the_service_asks_for_the_runtime() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"] in [
        {key: supported[key] for key in ("name", "version")} for supported in RUNTIME["spec"]["supportedModelFormats"]
    ]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


# deploy/kubernetes


@pytest.mark.parametrize(
    ("content", "definition"),
    [
        (DEPLOYMENT, "apps.v1.Deployment"),
        (BALANCER, "core.v1.Service"),
        (BUDGET, "policy.v1.PodDisruptionBudget"),
        (BEHAVIOR, "autoscaling.v2.HorizontalPodAutoscalerBehavior"),
        (SCALED["spec"], "ScaledObjectSpec"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kubernetes_and_keda_take_it(content: dict[str, Any], definition: str) -> None:
    """Their own schemas, which take no unknown field."""
    schemas, prefix = (KEDA, "") if definition == "ScaledObjectSpec" else (SCHEMAS, "io.k8s.api.")
    schema = {**schemas, "$ref": f"#/$defs/{prefix}{definition}"}
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="'misspelt' was unexpected"):
        jsonschema.validate({**content, "misspelt": 1}, schema)


def test_all_parts_mean_the_same_pods() -> None:
    labels = POD["metadata"]["labels"]
    [spread] = POD["spec"]["topologySpreadConstraints"]
    for selector in (
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        BALANCER["spec"]["selector"],
        BUDGET["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    [container] = PODS["kubernetes"]["containers"]
    assert {port["targetPort"] for port in BALANCER["spec"]["ports"]} == {port["name"] for port in container["ports"]}
    assert SCALED["spec"]["scaleTargetRef"] == {"name": DEPLOYMENT["metadata"]["name"]}
    assert "replicas" not in DEPLOYMENT["spec"], "each kubectl apply would undo what KEDA did"
    assert POD["spec"]["enableServiceLinks"] is False, "the Service would set BNFOLD_PORT"


def test_the_autoscaler_has_the_numbers_that_were_simulated() -> None:
    scaling, spec = Scaling(), SCALED["spec"]
    rows, wait = (trigger["metadata"] for trigger in spec["triggers"])
    assert float(rows["threshold"]) == scaling.rows_target
    assert float(wait["threshold"]) == scaling.wait_target
    assert spec["minReplicaCount"] == scaling.least
    assert spec["pollingInterval"] == scaling.poll
    assert BEHAVIOR["scaleDown"]["stabilizationWindowSeconds"] == scaling.window
    [down] = BEHAVIOR["scaleDown"]["policies"]
    assert (down["value"], down["periodSeconds"]) == (100 * scaling.down_share, 60)
    up = [(policy["type"], policy["value"], policy["periodSeconds"]) for policy in BEHAVIOR["scaleUp"]["policies"]]
    assert up == [("Percent", 100, scaling.up_seconds), ("Pods", 4, scaling.up_seconds)]


def test_the_autoscaler_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    page = create_app(Settings(repository=tmp_path)).metrics.page().decode()
    families = set(re.findall(r"^# TYPE (bnfold_\w+) ", page, re.MULTILINE))
    asked = {
        name
        for trigger in SCALED["spec"]["triggers"]
        for name in re.findall(r"bnfold_\w+", trigger["metadata"]["query"])
    }
    assert {re.sub("_(sum|count)$", "", name) for name in asked} <= families
