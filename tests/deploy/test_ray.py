"""What deploy/ray tells Ray is what Ray and the service take, and what a replica makes of what Ray gives it."""

import json
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jsonschema
import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from fold.errors import BnfoldError
from service import ray as module
from service.settings import Settings, load_settings
from support import ROOT

FOLDER = ROOT / "deploy" / "ray"
SERVE = yaml.safe_load((FOLDER / "serve.yaml").read_text())
RAY_SERVICE = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())


def test_ray_takes_its_file_and_the_service_its_arguments() -> None:
    [application] = ServeDeploySchema.model_validate(SERVE).applications
    built = module.app(application.args)
    [deployment] = application.deployments
    assert built._bound_deployment.name == deployment.name
    assert isinstance(deployment.autoscaling_config, dict)
    policy = AutoscalingConfig(**deployment.autoscaling_config).policy
    assert policy.policy_function == "service.ray:ByRows"
    assert module.ByRows(**policy.policy_kwargs)


def test_kuberay_has_the_same_file_and_time_to_stop() -> None:
    assert yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]) == SERVE
    cluster = RAY_SERVICE["spec"]["rayClusterConfig"]
    head, [workers] = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"]
    pods = (head, workers["template"]["spec"])
    [application] = SERVE["applications"]
    for pod in pods:
        [container] = pod["containers"]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [application["args"]["repository"]]
    timeout = load_settings(**application["args"]).timeout_seconds
    assert pods[1]["terminationGracePeriodSeconds"] >= module.DRAIN_SECONDS + timeout
    [deployment] = application["deployments"]
    assert int(pods[1]["containers"][0]["resources"]["limits"]["cpu"]) == deployment["ray_actor_options"]["num_cpus"]


def test_kubernetes_takes_the_pods_of_kuberay() -> None:
    """Its own schema, which takes no unknown field. The fields around them are those of KubeRay's API, ray.io/v1."""
    assert (RAY_SERVICE["apiVersion"], RAY_SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert RAY_SERVICE["spec"].keys() == {"serveConfigV2", "rayClusterConfig"}
    cluster = RAY_SERVICE["spec"]["rayClusterConfig"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head.keys() == {"rayStartParams", "template"}
    assert workers.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    schemas = json.loads((ROOT / "tests" / "data" / "kubernetes.json").read_text())
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        jsonschema.validate(group["template"], {**schemas, "$ref": "#/$defs/io.k8s.api.core.v1.PodTemplateSpec"})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"repository": "/m", "port": 80, "host": "::"}, "settings: host, port: Ray's proxy decides that"),
        ({"repository": "/m", "model": "a"}, "settings: there is no model; the nearest name is models"),
        ({}, "settings: repository .or BNFOLD_REPOSITORY.: Field required"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_a_replica_starts(args: dict[str, Any], message: str) -> None:
    with pytest.raises(BnfoldError, match=message):
        module.app(args)


def of_replica(settings: Settings, gpus: float) -> Settings:
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0, **({"GPU": gpus} if gpus else {})})
    with (
        mock.patch.object(module.ray, "get_runtime_context", return_value=context),
        mock.patch.object(module, "gpu_memory", {"cuda": 80_000}.__getitem__),
    ):
        return module.of_replica(settings)


def test_a_replica_takes_its_share_of_a_gpu() -> None:
    settings = load_settings(repository="/m", device="cuda")
    assert of_replica(settings, 0.25).gpu_memory_limit_bytes == 20_000
    assert of_replica(settings, 1).gpu_memory_limit_bytes is None
    limited = load_settings(repository="/m", device="cuda", gpu_memory_limit_bytes=7)
    assert of_replica(limited, 0.5) == limited
    on_cpu = load_settings(repository="/m", device="cpu")
    assert of_replica(on_cpu, 0.5) == of_replica(on_cpu, 0) == on_cpu


def test_a_replica_without_a_gpu_computes_on_none() -> None:
    assert of_replica(load_settings(repository="/m", device="auto"), 0).device == "cpu"
    with pytest.raises(BnfoldError, match="device cuda: this replica has no GPU; give it num_gpus"):
        of_replica(load_settings(repository="/m", device="cuda"), 0)


def test_replicas_are_as_many_as_their_rows_need() -> None:
    policy = module.ByRows(16)
    for rows, replicas in (({"a": 0.0, "b": 0.0}, 0), ({"a": 16.0, "b": 16.0}, 2), ({"a": 33.0}, 3)):
        assert policy(SimpleNamespace(aggregated_metrics={"rows": rows}))[0] == replicas
    assert policy(SimpleNamespace(aggregated_metrics={}, target_num_replicas=5))[0] == 5, "none has told yet"


def test_a_replica_tells_rows_and_a_lost_device() -> None:
    batchers = [SimpleNamespace(queued_rows=3, running_rows=4), SimpleNamespace(queued_rows=0, running_rows=1)]
    repository = SimpleNamespace(lost=lambda: None, ready=lambda: [SimpleNamespace(batcher=one) for one in batchers])
    replica = module.Replica()
    replica.app = SimpleNamespace(repository=repository)  # type: ignore[assignment]
    assert replica.record_autoscaling_stats() == {"rows": 8.0}
    replica.check_health()
    repository.lost = lambda: "CUDA error 719"
    with pytest.raises(RuntimeError, match="the device is lost: CUDA error 719"):
        replica.check_health()
