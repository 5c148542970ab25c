"""Models in S3 and in Google Cloud Storage, over a socket: moto speaks S3, gcp-storage-emulator the JSON API of GCS."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import fsspec.config
import httpx
import numpy as np
import pytest
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

import fold
from support.commands import assert_one_line, bnfold
from support.service import served
from support.service.reloading import REQUEST, WATCH, corrupt, index, right, states, table, wait
from support.service.serving import start

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Bucket:
    """The bucket `models` of a store."""

    scheme: str
    put: Callable[[str, bytes], object]
    delete: Callable[[str], object]

    @property
    def url(self) -> str:
        return f"{self.scheme}://models/repository"

    def upload(self, version: Path, files: str = "*") -> None:
        """Files of NAME/VERSION, the manifest last."""
        for file in sorted(version.glob(files), key=lambda file: file.name == "manifest.json"):
            self.put(f"repository/{version.parent.name}/{version.name}/{file.name}", file.read_bytes())


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        bucket = boto3.resource("s3").create_bucket(Bucket="models")
        yield Bucket(
            "s3",
            lambda path, content: bucket.put_object(Key=path, Body=content),
            lambda path: bucket.Object(path).delete(),
        )
    finally:
        server.stop()


@contextmanager
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with create_server("127.0.0.1", 0, in_memory=True, default_bucket="models") as server:
        host = f"http://127.0.0.1:{server._api._httpd.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks over gRPC, and with TLS
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})

        def put(path: str, content: bytes) -> None:
            httpx.put(f"{host}/models/{path}", content=content).raise_for_status()

        def delete(path: str) -> None:
            httpx.delete(f"{host}/storage/v1/b/models/o/{path.replace('/', '%2F')}").raise_for_status()

        yield Bucket("gs", put, delete)


@pytest.fixture(scope="module", params=[s3, gs], ids=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """One for all tests, for a client keeps the address of its store."""
    with pytest.MonkeyPatch.context() as patched, request.param(patched) as found:
        patched.setenv("BNFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield found


def answered(service: Any) -> str:
    return right(service.post("/v2/models/table/infer", json=REQUEST).json())


def test_a_service_follows_what_is_uploaded(bucket: Bucket, tmp_path: Path) -> None:
    """Also half of a version, an altered one, and its repair."""
    for version in (1, 2, 3):
        table(tmp_path, version)
    first, second, third = (tmp_path / "table" / str(version) for version in (1, 2, 3))
    bucket.upload(first)
    with start(bucket.url, cache=tmp_path / "cache", **WATCH) as service:
        assert answered(service) == "1"
        bucket.upload(second, "m*")
        wait(lambda: states(service).get("table/2") == "UNAVAILABLE")
        assert index(service)["table/2"][1] == f"{bucket.url}/table/2/unfolded.onnx: is not there"
        assert answered(service) == "1"
        bucket.upload(second, "u*")
        wait(lambda: states(service).get("table/2") == "READY")
        assert answered(service) == "2"
        right_graph = (third / "model.onnx").read_bytes()
        corrupt(third)
        bucket.upload(third)
        wait(lambda: states(service).get("table/3") == "UNAVAILABLE")
        assert "is not what the manifest says" in index(service)["table/3"][1]
        (third / "model.onnx").write_bytes(right_graph)
        bucket.upload(third, "model.onnx")
        wait(lambda: states(service).get("table/3") == "READY")
        assert answered(service) == "3"
        bucket.delete("repository/table/3/manifest.json")
        wait(lambda: states(service) == {"table/2": "READY"})


def test_a_model_is_loaded_verified_and_run_over_a_data_set(bucket: Bucket, tmp_path: Path) -> None:
    served.net(tmp_path)
    bucket.upload(tmp_path / "net" / "1")
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    expected = fold.load(tmp_path / "net").run(images)["scores"]
    model = fold.load(f"{bucket.url}/net")
    np.testing.assert_array_equal(model.run(images)["scores"], expected)
    assert model.verify(samples=2)
    np.save(tmp_path / "data.npy", images)
    done = bnfold("predict", f"{bucket.url}/net", tmp_path / "data.npy", "--out", tmp_path / "out", "--json")
    assert (done.returncode, json.loads(done.stdout)["predicted"]) == (0, 5)
    assert_one_line(bnfold("verify", f"{bucket.url}/nobody"), f"{bucket.url}/nobody: ")
    assert_one_line(bnfold("verify", f"{bucket.scheme}://nobody/net"), f"{bucket.scheme}://nobody/net: ")
