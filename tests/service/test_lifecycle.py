"""From the first line on stderr to the exit code: starting, refusing to start, and leaving without losing a request."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fold.artifact.directory import read_version, write_manifest
from fold.cli import main
from fold.errors import BnfoldError
from service.settings import Settings, load_settings
from support.service.serving import PATIENCE

ROW = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


def refusal(start: Callable[..., Any], repository: Path, **settings: Any) -> str:
    """What a service says that must not start."""
    with pytest.raises(BnfoldError) as refused, start(repository, **settings):
        pass
    message = str(refused.value)
    assert "\n" not in message, "it is printed as one line"
    return message


def test_the_start_line_names_models_address_and_provider(service: Any) -> None:
    place = next(at for at, line in enumerate(service.lines) if f":{service.port} " in line)  # others log here, too
    serving = service.lines[place]
    assert any(line.startswith("bnfold: not serving broken/1: ") for line in service.lines[:place])
    assert serving.startswith("bnfold: serving echo/1, free/1, net/1, ")
    assert serving.endswith(f" on http://127.0.0.1:{service.port} (cpu)")


def test_a_taken_port_is_one_clear_line_and_exit_2(
    repository: Path, start_process: Callable[..., Any], service: Any
) -> None:
    with start_process(repository, ready=False, port=service.port) as other:
        assert other.process.wait(timeout=PATIENCE) == 2
    assert other.lines == [
        f"bnfold: port {service.port} on 127.0.0.1 is taken; stop what listens there, or choose another with --port"
    ]


def test_a_port_that_is_bound_but_not_listened_on(repository: Path, start: Callable[..., Any]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert "is taken" in refusal(start, repository, port=other.getsockname()[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "99999"}, "port (or BNFOLD_PORT): Input should be less than or equal to 65535, '99999' came"),
        ({"repository": "/no/such/folder"}, "/no/such/folder: no such folder; expected a model repository"),
    ],
    ids=["a bad setting", "no model"],
)
def test_a_process_that_cannot_start_prints_one_line_and_exits_with_2(
    repository: Path, start_process: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    folder = Path(settings.pop("repository", repository))
    with start_process(folder, ready=False, **settings) as service:
        assert service.process.wait(PATIENCE) == 2
    (line,) = service.lines
    assert line.startswith("bnfold: ")
    assert message in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "no.such.host.invalid"}, "host 'no.such.host.invalid': "),
        ({"host": "192.0.2.1"}, "choose another with --host and --port"),
        ({"device": "cuda"}, "device cuda: "),
        ({"max_batch_size": "many"}, "max_batch_size (or BNFOLD_MAX_BATCH_SIZE): "),
    ],
)
def test_what_cannot_start_says_why(
    repository: Path, start: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    assert message in refusal(start, repository, **settings)


def test_a_repository_of_which_nothing_can_be_served(
    tmp_path: Path, repository: Path, start: Callable[..., Any]
) -> None:
    assert "holds no model; expected NAME/VERSION folders" in refusal(start, tmp_path)
    shutil.copytree(repository / "broken", tmp_path / "broken")
    message = refusal(start, tmp_path)
    assert "no model can be served: broken/1: " in message
    assert "was changed after it was written" in message


def test_the_latest_version_serves(tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]) -> None:
    for version in (1, 9, 10):
        make_net(tmp_path, "net", version=version)
    with start(tmp_path) as service:
        assert service.get("/v2/models/net").json()["versions"] == ["10"]
        assert service.get("/v2/models/net/versions/10/ready").json() == {"name": "net", "ready": True}
        assert service.get("/v2/models/net/versions/9").status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(repository: Path, start_process: Callable[..., Any], number: signal.Signals) -> None:
    with start_process(repository, grace_seconds=0) as service:
        service.process.send_signal(number)
        assert service.process.wait(PATIENCE) == 0
    assert service.said == []


def test_readiness_goes_first_and_requests_are_still_served(
    repository: Path, start_process: Callable[..., Any]
) -> None:
    with start_process(repository, grace_seconds=30) as service:
        assert service.get("/v2/health/ready").json() == {"ready": True}
        service.process.terminate()
        while (ready := service.get("/v2/health/ready")).is_success:
            pass
        assert (ready.status_code, "send requests elsewhere" in ready.json()["error"]) == (503, True)
        assert service.get("/v2/health/live").json() == {"live": True}
        while "connection" not in (answer := service.post("/v2/models/free/infer", json=ROW)).headers:
            assert answer.status_code == 200
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert service.metric("bnfold_ready") == 0
        service.process.terminate()  # the second signal means now
        assert service.process.wait(PATIENCE) == 0


def test_sigterm_under_load_loses_no_request(repository: Path, start_process: Callable[..., Any]) -> None:
    """Clients that connect anew for each request: every one is answered in full, or was never let in."""
    answered, lost = [0] * 12, []
    body = json.dumps(ROW).encode()
    request = b"POST /v2/models/free/infer HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with start_process(repository, grace_seconds=0.3) as service:

        def client(number: int) -> None:
            while True:
                with socket.socket() as connection:
                    connection.settimeout(30)
                    try:
                        connection.connect(("127.0.0.1", service.port))
                        connection.sendall(request)
                        answer = b"".join(iter(lambda: connection.recv(65536), b""))
                    except ConnectionRefusedError:
                        return
                    except OSError as error:
                        lost.append(repr(error))
                        return
                    if not (answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'"data":[6.0]}]}')):
                        lost.append(repr(answer))
                    answered[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(answered))]
        for thread in threads:
            thread.start()
        while min(answered) < 3:
            assert not lost
        service.process.terminate()
        for thread in threads:
            thread.join()
        assert service.process.wait(PATIENCE) == 0
    assert lost == []


def test_sigterm_answers_what_is_queued(repository: Path, start_process: Callable[..., Any]) -> None:
    """Kept-alive connections with requests in the queue when the signal comes."""
    statuses: list[int] = []
    with start_process(repository, grace_seconds=0) as service:

        def client() -> None:
            row = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [300]}
            statuses.append(service.post("/v2/models/slow/infer", json={"inputs": [row]}).status_code)

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        while service.metric('bnfold_queue_rows{model="slow",version="1"}') < 7:
            pass
        service.process.terminate()
        for thread in threads:
            thread.join()
        assert service.process.wait(PATIENCE) == 0
    assert statuses == [200] * 8


def test_sigterm_abandons_proofs(
    tmp_path: Path, start_process: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    """The reference computes for minutes, in one step. Who waits for it is told, and the process ends all the same."""
    make_slow(tmp_path, quick=True)
    row = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [900]}]}
    with start_process(tmp_path, grace_seconds=0.2) as service, ThreadPoolExecutor(5) as pool:
        checks = [pool.submit(service.post, "/v2/models/slow/equivalence", json=row) for _ in range(5)]
        refused = next(as_completed(checks)).result()
        assert refused.status_code == 429, "four wait, of which one computes"
        service.process.terminate()
        answers = [check.result() for check in checks if check.result() is not refused]
        assert service.process.wait(PATIENCE) == 0
    assert [answer.status_code for answer in answers] == [503] * 4
    assert all("the service is stopping" in answer.json()["error"] for answer in answers)
    assert service.said == [], "no traceback"


SERVE_AND_TELL = """
import sys
from service.app import serve
from service.settings import load_settings
serve(load_settings())
print("heavy:", sorted({"torch", "onnx", "onnx_ir", "onnxscript"} & set(sys.modules)), file=sys.stderr)
"""


def test_predictions_never_import_torch_or_onnx(repository: Path, start_process: Callable[..., Any]) -> None:
    """The process tells its modules at its end, after every path but the proof was used."""
    image = BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    with start_process(repository, code=SERVE_AND_TELL, grace_seconds=0) as service:
        assert service.post("/v2/models/free/infer", json=ROW).status_code == 200
        assert service.post("/v1/models/single:predict", json={"instances": [[1, 2, 3, 4]]}).status_code == 200
        headers = {"Content-Type": "image/png"}
        assert service.post("/v1/models/net:predict", content=image.getvalue(), headers=headers).status_code == 200
        for path in ("/", "/metrics", "/v2", "/v2/models/net", "/docs", "/openapi.json"):
            assert service.get(path).status_code == 200
        service.process.terminate()
        service.process.wait(PATIENCE)
    assert service.lines[-1] == "heavy: []"


def test_importing_the_service_is_light() -> None:
    heavy = ("torch", "onnx", "onnx_ir", "jinja2", "PIL", "fold.proof.verify")
    code = f"import sys, service.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_come_from_the_environment_and_the_caller_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BNFOLD_PORT", "9000")
    monkeypatch.setenv("BNFOLD_QUEUE_ROWS", "7")
    monkeypatch.setenv("BNFOLD_HOST", "")
    settings = load_settings(repository=tmp_path, port=9001, device=None)
    assert (settings.port, settings.queue_rows, settings.host, settings.device) == (9001, 7, "127.0.0.1", "auto")
    assert isinstance(settings, Settings)
    with pytest.raises(BnfoldError, match=r"settings: repository \(or BNFOLD_REPOSITORY\): Field required"):
        load_settings()


def test_a_user_without_a_home_can_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a container's, whose number no file names."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert load_settings(repository=tmp_path).cache.name == "bnfold"


def test_unknown_settings_are_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BNFOLD_TOKEN", "secret")  # with this ignored, the service would be open
    with pytest.raises(SystemExit) as left:
        main(["serve", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "bnfold: settings: there is no BNFOLD_TOKEN; the nearest name is BNFOLD_TOKENS\n"
    )
    monkeypatch.delenv("BNFOLD_TOKEN")
    with pytest.raises(BnfoldError, match="settings: there is no max_batch; the nearest name is max_batch_size"):
        load_settings(repository=tmp_path, max_batch=3)
    for name in ("BNFOLD_PUBLISH", "BNFOLD_GPU_TEST_UNTIL"):  # docker-compose.yml and our own tests read these
        monkeypatch.setenv(name, "8")
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR"):  # and these Kubernetes sets
        monkeypatch.setenv(f"BNFOLD_{name}", "10.0.0.1")
        monkeypatch.setenv(f"BNFOLD_WEB_{name}", "10.0.0.1")
    assert load_settings(repository=tmp_path).port == 8000


def test_a_version_that_cannot_be_loaded_is_explained(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    """A datatype that is not served, a graph that is not the manifest's, a missing manifest: the good one serves."""
    for name in ("good", "strange", "other", "bare"):
        make_net(tmp_path, name)
    (tmp_path / "bare" / "1" / "manifest.json").unlink()
    for name, change in (("strange", {"datatype": "COMPLEX64"}), ("other", {"name": "picture"})):
        folder = tmp_path / name / "1"
        manifest = read_version(folder).manifest
        inputs = (manifest.inputs[0].model_copy(update=change),)
        write_manifest(folder, manifest.model_copy(update={"inputs": inputs}))
    with start(tmp_path) as service:
        reasons = {entry["name"]: entry["reason"] for entry in service.post("/v2/repository/index").json()}
        assert service.get("/v2/models/good/ready").status_code == 200
    assert reasons["good"] == ""
    assert "tensor 'image' is COMPLEX64, which is not served; expected one of BOOL" in reasons["strange"]
    assert "its inputs are ['image'], the manifest says ['picture']" in reasons["other"]
    assert "manifest.json: cannot be read" in reasons["bare"]
