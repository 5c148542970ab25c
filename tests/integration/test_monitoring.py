"""What watches the service: the real Prometheus with the configuration of deploy/, and the dashboard's queries."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support import ROOT
from support.service.served import net
from support.service.serving import PATIENCE, ServiceProcess, start_process

DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "bnfold.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
GPU_ONLY = {"bnfold_gpu_memory_used_bytes", "bnfold_gpu_memory_total_bytes", "bnfold_gpu_utilization_ratio"}
"""What a service on a CPU does not give; service/telemetry/gpu.py makes them."""
NOT_YET = {"bnfold_model_broken", "bnfold_errors_total", "bnfold_shadow_disagreements_total"}
"""What a scrape names without a value until something goes wrong."""

PROMETHEUS = shutil.which("prometheus") or ""
PROMTOOL = shutil.which("promtool") or ""


def needs_prometheus(test: Any) -> Any:
    missing = not (PROMETHEUS and PROMTOOL)
    return pytest.mark.integration(pytest.mark.skipif(missing, reason="no prometheus; .ci/run installs it")(test))


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:bnfold|process)_\w+", re.sub(r'"[^"]*"', "", expression)))


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def concrete(expression: str) -> str:
    """A panel's query as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$model", ".*")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that has answered, refused, proven and compared."""
    repository = tmp_path_factory.mktemp("watched")
    net(repository)
    with start_process(repository, shadow=1.0) as service:
        row = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
        compared = 'bnfold_shadow_rows_total{model="net",version="1"}'
        deadline = time.monotonic() + 60
        while service.metric(compared) == 0:
            assert time.monotonic() < deadline, "nothing was compared"
            assert service.post("/v2/models/net/infer", json=row).status_code == 200
        assert service.post("/v2/models/net/infer", json={}).status_code == 400
        assert service.post("/v2/models/net/equivalence", json={"samples": 2, "seed": 0}).json()["equivalent"] is True
        yield service


@pytest.fixture(scope="module")
def prometheus(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus as compose would start it, but for the addresses and a shorter interval."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [service.address]}]
    config["global"] = dict.fromkeys(config["global"], "1s")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client:
            deadline = time.monotonic() + 60
            while not scraped(client):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "nothing was scraped"
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    result: list[dict[str, Any]] = answer.json()["data"]["result"]
    return result


def scraped(client: httpx.Client) -> bool:
    """Twice at least, as a rate wants. Prometheus itself is not ready at once."""
    try:
        if client.get("/status/runtimeinfo").status_code == 503:
            return False
    except httpx.TransportError:
        return False
    return any(float(sample["value"][1]) >= 2 for sample in query(client, 'count_over_time(up{job="bnfold"}[1m])'))


@needs_prometheus
def test_promtool_accepts_the_configuration() -> None:
    done = subprocess.run([PROMTOOL, "check", "config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@needs_prometheus
def test_each_alert_fires_where_it_must_and_nowhere_else() -> None:
    file = ROOT / "tests" / "data" / "alerts.yml"
    done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {
        case["alertname"]
        for group in yaml.safe_load(file.read_text())["tests"]
        for case in group["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert "{{ $labels." in rule["annotations"]["summary"]


def test_every_metric_that_is_asked_for_exists(service: ServiceProcess) -> None:
    """It has a value in a real scrape; or it is named there and comes with a failure, or with a GPU."""
    page = service.get("/metrics").text
    named = set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
    valued = {family(name) for name in re.findall(r"^(\w+)[ {]", page, re.MULTILINE)}
    asked = {
        family(name) for expression in (*EXPRESSIONS, *(rule["expr"] for rule in ALERTS)) for name in names(expression)
    }
    assert asked - named - GPU_ONLY == set()
    assert asked - valued - GPU_ONLY <= NOT_YET
    made = (ROOT / "service" / "telemetry" / "gpu.py").read_text()
    assert {name for name in GPU_ONLY if f'"{name}"' in made} == GPU_ONLY & asked == GPU_ONLY


@needs_prometheus
def test_prometheus_scrapes_the_service(prometheus: httpx.Client, service: ServiceProcess) -> None:
    [up] = query(prometheus, 'up{job="bnfold"}')
    assert (up["metric"]["instance"], up["value"][1]) == (service.address, "1")
    [rows] = query(prometheus, "bnfold_rows_total")
    assert float(rows["value"][1]) == service.metric('bnfold_rows_total{model="net",version="1"}')
    groups = prometheus.get("/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules} == {rule["alert"]: "ok" for rule in ALERTS}


@needs_prometheus
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_something_to_show(panel: dict[str, Any], prometheus: httpx.Client) -> None:
    for target in panel["targets"]:
        found = query(prometheus, concrete(target["expr"]))
        if names(target["expr"]) & (GPU_ONLY | {"bnfold_shadow_disagreements_total", "bnfold_shadow_drops_total"}):
            continue
        assert found, target["expr"]
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert all(labels <= set(sample["metric"]) for sample in found), target["legendFormat"]


@needs_prometheus
def test_the_autoscaler_has_numbers_to_go_by(prometheus: httpx.Client) -> None:
    for trigger in yaml.safe_load((DEPLOY / "kubernetes" / "scaledobject.yaml").read_text())["spec"]["triggers"]:
        [found] = query(prometheus, trigger["metadata"]["query"])
        assert 0 <= float(found["value"][1]) < float("inf"), trigger


def test_the_dashboard_shows_what_matters() -> None:
    asked = {name for expression in EXPRESSIONS for name in names(expression)}
    assert {
        "bnfold_requests_total",
        "bnfold_queue_seconds_bucket",
        "bnfold_compute_seconds_bucket",
        "bnfold_batch_rows_bucket",
        "bnfold_queue_rows",
        "bnfold_equivalent",
        "bnfold_shadow_error_ratio",
        *GPU_ONLY,
    } <= asked
    for metric in ("bnfold_queue_seconds", "bnfold_compute_seconds"):
        quantiles = {expr.split(",")[0] for expr in EXPRESSIONS if f"{metric}_bucket" in expr}
        assert quantiles == {f"histogram_quantile({q}" for q in (0.5, 0.95, 0.99)}


def test_compose_and_grafana_find_each_other() -> None:
    services = COMPOSE["services"]
    [job] = yaml.safe_load(CONFIG.read_text())["scrape_configs"]
    [target] = [target for entry in job["static_configs"] for target in entry["targets"]]
    name, port = target.split(":")
    for profile in ("cpu", "gpu"):
        assert services[f"serve-{profile}"]["networks"]["default"]["aliases"] == [name]
        assert services[f"serve-{profile}"]["ports"][0].endswith(f":{port}")
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {source["uid"]}
    [provider] = yaml.safe_load((provisioning / "dashboards" / "bnfold.yml").read_text())["providers"]
    mounted = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DEPLOY / "grafana" / "dashboards" / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert (
        dict(mount.split(":")[:2] for mount in services["prometheus"]["volumes"])["./deploy/prometheus"]
        == "/etc/prometheus"
    )
