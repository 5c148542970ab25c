"""A certificate that is renewed serves without a restart, over HTTPS and gRPC, and no request is lost by it."""

import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from unittest import mock

import httpx
import pytest

from fold.errors import BnfoldError
from service.http import server
from service.tls import Certificate
from support.service import served
from support.service.reloading import wait
from support.service.serving import PATIENCE, start, start_process

ROW = {"inputs": [{"name": "x", "shape": [4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/single/infer"


class Pair:
    """A certificate and its key, in files that are written anew."""

    def __init__(self, folder: Path) -> None:
        self.chain, self.key = folder / "certificate.pem", folder / "key.pem"
        self.settings = {"tls_certificate": self.chain, "tls_key": self.key}
        self.write()

    def write(self, *options: str) -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *(options or ["-nodes"])]
        names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(self.key), "-out", str(self.chain)]
        subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True, capture_output=True)

    def shown(self, port: int) -> bool:
        """Whether a new connection is shown this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
        return shown == ssl.PEM_cert_to_DER_cert(self.chain.read_text())


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    served.others(folder)
    return folder


def test_sighup_takes_over_a_renewed_certificate_and_drops_nothing(single: Path, pair: Pair) -> None:
    answered, failed, done = [0], list[str](), threading.Event()

    def client(url: str) -> None:
        with httpx.Client(base_url=url, verify=False, timeout=PATIENCE) as connection:
            while not done.is_set():
                status = connection.post(INFER, json=ROW).status_code
                answered[0] += 1
                if status != 200:
                    failed.append(str(status))

    with start_process(single, grpc_port=0, grace_seconds=0, **pair.settings) as service:
        ports = service.port, int(service.grpc.rsplit(":", 1)[1])
        assert all(pair.shown(port) for port in ports)
        thread = threading.Thread(target=client, args=(service.url,))
        thread.start()
        try:
            pair.write()
            service.process.send_signal(signal.SIGHUP)
            wait(lambda: all(pair.shown(port) for port in ports))
            pair.key.write_text("no key")
            for _ in range(20):
                service.process.send_signal(signal.SIGHUP)
            before = answered[0]
            wait(lambda: answered[0] > before + 20)
            assert all(pair.shown(port) for port in ports), "the last that fitted"
        finally:
            done.set()
            thread.join()
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0
    assert failed == []
    assert f"bnfold: TLS: {pair.chain} was renewed" in service.lines
    assert any("are no certificate chain with its key, in PEM: " in line for line in service.lines)


def test_a_certificate_is_renewed_by_the_date_of_its_files(single: Path, pair: Pair) -> None:
    with mock.patch.object(server, "LOOK_SECONDS", 0.0), start(single, **pair.settings) as service:
        pair.write()
        wait(lambda: pair.shown(service.port))
        pair.key.write_text("no key")
        wait(lambda: any("the certificate from before serves on" in line for line in service.lines))
        assert pair.shown(service.port)
    assert len([line for line in service.lines if "serves on" in line]) == 1, "a fault is told once"


def test_without_tls_sighup_ends_nothing(single: Path) -> None:
    with start_process(single, grace_seconds=0) as service:
        service.process.send_signal(signal.SIGHUP)
        assert service.post(INFER, json=ROW).status_code == 200
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0


def test_files_that_are_being_written_are_left_alone(pair: Pair) -> None:
    """The key comes after the certificate: a look in between finds that they do not rest yet."""
    certificate = Certificate(pair.chain, pair.key)
    before = certificate.pem
    key = pair.key.read_bytes()
    pair.write()
    new_key = pair.key.read_bytes()
    pair.key.write_bytes(key)
    certificate.renew()
    pair.key.write_bytes(new_key)
    certificate.renew()
    assert certificate.pem == before
    certificate.renew()
    assert certificate.pem == (new_key, pair.chain.read_bytes())


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(pair: Pair) -> None:
    pair.write("-passout", "pass:secret")
    with pytest.raises(BnfoldError, match=r"TLS: .* in PEM: the key is encrypted; expected one without a password"):
        Certificate(pair.chain, pair.key)
