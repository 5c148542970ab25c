"""The image and the compose file agree with the code that they run. No container engine is needed."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from setuptools import find_namespace_packages

import fold.cli
from fold.sources.architecture.factory import load_architecture
from models import digits
from service.app import create_app
from service.settings import Settings, load_settings
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {  # of these folders alone: a search of the checkout would walk through build/ and environments
    f"{name}.{inner}".strip(".")
    for name in (pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    for inner in ["", *find_namespace_packages(str(ROOT / name))]
}
EXTRAS = PROJECT["project"]["optional-dependencies"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ["cpu", "gpu"]
BUILT = [f"{kind}-{profile}" for kind in ("example", "serve") for profile in PROFILES]
WATCHING = ["prometheus", "grafana"]


@dataclass
class Stage:
    """One stage of the Dockerfile: what it starts from, and its instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [text for instruction, text in self.instructions if instruction == name]


def _read_dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = current = Stage(base)
        elif current is None:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            current.instructions.append((instruction, rest))
    return arguments, stages


GLOBAL_ARGUMENTS, STAGES = _read_dockerfile()


def lineage(name: str) -> list[Stage]:
    """A stage and those that it starts from, the first one first."""
    stage = STAGES[name]
    return [*(lineage(stage.base) if stage.base in STAGES else []), stage]


def last(name: str, instruction: str) -> str:
    """What holds in the image of a stage."""
    return [text for stage in lineage(name) for text in stage.all(instruction)][-1]


def parse(app: typer.Typer, arguments: list[str]) -> dict[str, Any]:
    """The parameters that a command line would give to its command, which is not run. Raises for what it refuses."""
    group: Any = typer.main.get_command(app)
    command = group.commands[arguments[0]]
    parameters: dict[str, Any] = command.make_context(arguments[0], arguments[1:]).params
    return parameters


def last_copies(target: str) -> list[str]:
    """The stages whose environment and code an image takes."""
    return [text.split()[0].removeprefix("--from=") for stage in lineage(target) for text in stage.all("COPY")]


def grpc_port() -> str:
    """Where the image serves gRPC, which is off by default."""
    name, _, port = last("service", "ENV").partition("=")
    assert name == "BNFOLD_GRPC_PORT"
    return port


def health_command() -> list[str]:
    command: list[str] = json.loads(last("service", "HEALTHCHECK").partition("CMD")[2])
    return command


# The Dockerfile


@pytest.mark.parametrize("target", ["service", "slim"])
def test_an_image_takes_what_it_serves_with(target: str) -> None:
    environment, code = last_copies(target)
    assert environment == {"service": "dependencies", "slim": "slim-dependencies"}[target]
    assert code == "code"


def test_the_serving_image_is_the_default() -> None:
    assert list(STAGES)[-1] == "service"
    assert GLOBAL_ARGUMENTS == {"BASE": "python:3.11-slim-bookworm"}


def test_the_image_starts_what_the_command_line_has() -> None:
    [script] = json.loads(last("service", "ENTRYPOINT"))
    assert PROJECT["project"]["scripts"][script] == "fold.cli:main"
    parameters = parse(fold.cli.app, json.loads(last("service", "CMD")))
    assert parameters["repository"] == "/models"
    assert parameters["host"] == "0.0.0.0"
    assert last("service", "EXPOSE") == f"{Settings.model_fields['port'].default} {grpc_port()}"


def test_the_image_is_confined() -> None:
    uid, gid = last("service", "USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert last("service", "STOPSIGNAL") == "SIGTERM"
    environment = " ".join(text for stage in lineage("service") for text in stage.all("ENV"))
    assert "ORT_DISABLE_TELEMETRY=1" in environment
    assert "HOME=/tmp" in environment


def test_only_the_environment_and_the_code_are_shipped() -> None:
    for target in ("service", "slim", "example"):
        shipped = [text for stage in lineage(target) for text in stage.all("COPY")]
        if target == "example":  # the networks are examples, and no part of what is installed
            shipped.remove("models /opt/example/models")
            assert last(target, "ENV") == "PYTHONPATH=/opt/example"
        assert shipped
        assert all(re.fullmatch(r"--from=[\w-]+ (/new)?/opt/bnfold /opt/bnfold", text) for text in shipped)
        runs = [text for stage in lineage(target) for text in stage.all("RUN")]
        assert not any(re.search(r"\b(pip|apt|apt-get)\b", text) for text in runs)


def test_a_change_of_code_installs_nothing() -> None:
    for name in ("tools", "slim-dependencies", "dependencies", "train"):
        sources = {word for stage in lineage(name) for text in stage.all("COPY") for word in text.split()[:-1]}
        assert not sources & {*PACKAGES, "pyproject.toml", "."}, name
        assert "-c constraints.txt" in last(name, "RUN")
    assert "--no-index --no-deps" in last("code", "RUN")


@pytest.mark.parametrize(("extra", "extras"), [("cpu", ""), ("gpu", ""), ("cpu", "s3,gcs")])
def test_what_is_installed_is_what_the_project_asks_for(extra: str, extras: str, tmp_path: Path) -> None:
    assert STAGES["requirements"].all("ARG") == ["EXTRA=gpu", 'EXTRAS=""']
    folder = tmp_path / "requirements"
    command = last("requirements", "RUN").replace("/requirements", str(folder))
    command = command.replace("${EXTRA}", extra).replace("${EXTRAS}", extras)
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    written = {file.stem: file.read_text().splitlines() for file in folder.iterdir()}
    everything = PROJECT["project"]["dependencies"] + EXTRAS[extra]
    if extras:
        everything += EXTRAS["s3"] + EXTRAS["gcs"]
    assert written == {
        "tools": PROJECT["build-system"]["requires"],
        "slim": [line for line in everything if not line.startswith("torch>")],
        "dependencies": everything,
        "train": EXTRAS["train"],
    }
    assert len(written["slim"]) == len(everything) - 1
    for name in written:
        stage = "slim-dependencies" if name == "slim" else name
        assert any(f"/requirements/{name}.txt" in text for text in STAGES[stage].all("COPY")), name


def test_pytorch_comes_as_a_cpu_build_unless_told_otherwise() -> None:
    [argument] = [text for text in STAGES["dependencies"].all("ARG") if text.startswith("TORCH_INDEX_URL")]
    assert argument.endswith("/whl/cpu")
    # an empty one leaves the option out
    assert '${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"}' in last("dependencies", "RUN")
    for name in BUILT:
        assert SERVICES[name]["build"]["args"]["TORCH_INDEX_URL"] == f"${{{argument.replace('=', '-')}}}"


def test_the_context_holds_what_is_copied_and_every_package() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sources = {
        source
        for stage in STAGES.values()
        for text in stage.all("COPY")
        if not text.startswith("--from")
        for source in text.split()[:-1]
    }
    assert {package.split(".")[0] for package in PACKAGES} <= sources
    assert PROJECT["project"]["readme"] in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        verdicts = [not rule.startswith("!") for rule in rules if fnmatch(source, rule.removeprefix("!"))]
        assert verdicts[-1] is False, f"{source} is kept out by .dockerignore"
    assert "*" in rules, "only what is named may enter the image"


def test_every_folder_of_code_is_a_package() -> None:
    """A folder that setuptools does not find would be missing from the wheel, and so from the image."""
    folders = {path.parent for top in ("fold", "service") for path in (ROOT / top).rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= PACKAGES
    assert {package.partition(".")[0] for package in PACKAGES} == {"fold", "service"}, "the networks are examples"


def test_the_example_is_trained_and_folded_where_the_service_looks() -> None:
    program, *options = json.loads(last("example", "ENTRYPOINT"))
    assert (program, options) == ("/bin/sh", ["-euc"])
    [script] = json.loads(last("example", "CMD"))
    subprocess.run(["sh", "-n", "-c", script], check=True)
    lines = [shlex.split(line) for line in script.split(";")]
    [train] = [line for line in lines if line[:1] == ["python"]]
    [folding] = [line for line in lines if line[:1] == ["bnfold"]]
    assert train[1:3] == ["-m", "models.digits"]
    trained = parse(digits.app, train[3:])
    folded = parse(fold.cli.app, folding[1:])
    assert callable(load_architecture(trained["arch"]).make)
    assert folded["arch"] == trained["arch"]
    assert folded["source"] == trained["out"]
    repository = last("example", "WORKDIR")
    assert str(folded["out"]) == repository == parse(fold.cli.app, json.loads(last("service", "CMD")))["repository"]
    assert f"[ -f {folded['name']}/1/manifest.json ]" in script


# docs/deployment.md


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    listed = set(re.findall(r"^\| `(BNFOLD_\w+)` \|", text, re.MULTILINE))
    elsewhere = {"BNFOLD_REPOSITORY", "BNFOLD_HOST"}  # the image's own command line sets them
    assert listed | elsewhere == {f"BNFOLD_{name.upper()}" for name in Settings.model_fields}


def test_the_metrics_of_shadow_checks_are_documented() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    page = create_app(Settings(repository=Path("/no/such/folder"))).metrics.page().decode()
    existing = set(re.findall(r"^# TYPE (bnfold_\w+) ", page, re.MULTILINE))
    table = set(re.findall(r"^\| `(bnfold_\w+)` \|", text, re.MULTILINE))
    assert table == {name for name in existing if name.startswith("bnfold_shadow_")}


# The health check


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server on a free port that gives every request this status, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_whether_the_service_is_ready(status: int, healthy: bool, tmp_path: Path) -> None:
    program, *arguments = health_command()
    assert program == "python"
    with answering(status) as (port, paths):
        # a proxy from the environment must not stand between the check and its own container
        environment = {**os.environ, "BNFOLD_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) == healthy
    [path] = paths
    assert path in create_app(Settings(repository=tmp_path)).openapi()["paths"]


def test_the_health_check_fails_where_nothing_listens() -> None:
    with answering(200) as (port, _):
        pass
    environment = {**os.environ, "BNFOLD_PORT": str(port)}
    done = subprocess.run([sys.executable, *health_command()[1:]], env=environment, capture_output=True, check=False)
    assert done.returncode == 1


# docker-compose.yml


def test_the_file_is_what_the_compose_specification_allows() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    # Python's true and false are what YAML's are; merge keys were taken in while reading
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    [name] = [name for name in SERVICES if name == "serve-cpu"]
    wrong = {**COMPOSE, "services": {name: {**SERVICES[name], "read-only": True}}}
    assert not validator.is_valid(wrong), "it refuses what it does not know"


def test_each_profile_has_one_job_and_one_service() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items()} == {
        **{name: [name.split("-")[1]] for name in BUILT},
        **{name: ["watch"] for name in WATCHING},
    }


@pytest.mark.parametrize("name", BUILT)
def test_images_are_built_from_arguments_and_stages_that_exist(name: str) -> None:
    kind, profile = name.split("-")
    build = SERVICES[name]["build"]
    assert build["target"] == {"example": "example", "serve": "${BNFOLD_TARGET:-service}"}[kind]
    declared = {text.partition("=")[0] for stage in STAGES.values() for text in stage.all("ARG")}
    assert set(build["args"]) <= declared | set(GLOBAL_ARGUMENTS)
    assert build["args"]["EXTRA"] == profile
    assert profile in EXTRAS
    assert build["args"]["BASE"] == f"${{BASE:-{GLOBAL_ARGUMENTS['BASE']}}}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("profile", PROFILES)
def test_the_service_waits_for_the_job_and_reads_what_it_wrote(profile: str) -> None:
    job, service = SERVICES[f"example-{profile}"], SERVICES[f"serve-{profile}"]
    assert service["depends_on"] == {f"example-{profile}": {"condition": "service_completed_successfully"}}
    assert job["restart"] == "no"
    assert job["network_mode"] == "none"
    assert service["restart"] == "unless-stopped"
    assert job["volumes"] == ["models:/models"]
    assert service["volumes"] == ["models:/models:ro"]
    assert "models" in COMPOSE["volumes"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_service_is_reached_watched_and_given_time_to_stop(profile: str) -> None:
    service = SERVICES[f"serve-{profile}"]
    http, grpc = last("service", "EXPOSE").split()
    assert service["ports"] == [f"${{BNFOLD_PUBLISH:-8000}}:{http}", f"${{BNFOLD_GRPC_PUBLISH:-8001}}:{grpc}"]
    assert service["healthcheck"]["test"] == ["CMD", *health_command()]
    defaults = Settings(repository=Path("/models"))
    seconds = int(service["stop_grace_period"].removesuffix("s"))
    assert seconds > defaults.grace_seconds + defaults.timeout_seconds


@pytest.mark.parametrize("profile", PROFILES)
def test_the_environment_is_one_that_the_service_takes(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict(SERVICES[f"serve-{profile}"]["environment"])
    device = environment.pop("BNFOLD_DEVICE")
    assert device == {"cpu": "cpu", "gpu": "cuda"}[profile]
    # on the command line of the image, or what the ports and the health check of the container are about
    fixed = {"repository", "host", "port", "grpc_port", "device"}
    assert set(environment) == {f"BNFOLD_{name.upper()}" for name in set(Settings.model_fields) - fixed}
    for name, value in environment.items():
        assert value == f"${{{name}:-}}"
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("BNFOLD_DEVICE", device)
    assert load_settings(repository=Path("/models")) == Settings(repository=Path("/models"), device=device)


@pytest.mark.parametrize("name", WATCHING)
def test_what_watches_has_a_version_and_is_for_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"docker\.io/[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for mount in service["volumes"]:
        source, _, *options = mount.split(":")
        if source.startswith("."):
            assert (ROOT / source).is_dir(), source
            assert options == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


def test_the_gpu_is_reserved_for_the_gpu_service_alone() -> None:
    reserving = {name for name, service in SERVICES.items() if "deploy" in service}
    assert reserving == {"serve-gpu"}
    [device] = SERVICES["serve-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
