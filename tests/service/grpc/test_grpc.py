"""What is ours of gRPC: one queue with HTTP, deadlines and cancelling, limits, tokens, TLS, and an end without a loss.

That the protocol is spoken as it should be is tested in tests/conformance.
"""

import asyncio
import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from support import ROOT
from support.service import served
from support.service.serving import HELD, PATIENCE, Hold, Service, held, held_by, start, start_process

PROTO = ROOT / "service" / "grpc" / "inference.proto"
SERVICE = "inference.GRPCInferenceService"
STOPPING = "the service is stopping; send the request elsewhere"
Code = grpc.StatusCode


def row(value: float) -> dict[str, Any]:
    """A request over HTTP for `slow`."""
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}


def tensor(name: str, array: Any) -> Any:
    array = np.asarray(array, np.float32)
    return triton.InferInput(name, list(array.shape), "FP32").set_data_from_numpy(array)


def message(model: str, name: str, array: Any, datatype: str = "FP32") -> Any:
    array = np.asarray(array)
    made = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
    made.inputs.add(name=name, datatype=datatype, shape=array.shape)
    return made


@contextlib.contextmanager
def connected(service: Service, **options: Any) -> Iterator[Any]:
    """The methods of the service, on a connection of its own."""
    with grpc.insecure_channel(service.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield GRPCInferenceServiceStub(channel)


def code_of(call: Callable[[], Any]) -> Code:
    """How a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "what was waited for has not come"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Service]:
    with start(repository, grpc_port=0) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def slow_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow")
    served.slow(folder)
    return folder


@contextlib.contextmanager
def running(service: Service) -> Iterator[None]:
    """A run of the model `slow` that is held."""
    thread = threading.Thread(target=lambda: service.post("/v2/models/slow/infer", json=row(HELD)))
    thread.start()
    until(lambda: service.metric('bnfold_running_rows{model="slow",version="1"}') == 1)
    yield
    thread.join()


@pytest.fixture
def hold() -> Iterator[Hold]:
    with held() as hold:
        yield hold


@pytest.fixture
def busy(slow_alone: Path, hold: Hold) -> Iterator[Service]:
    """A service of its own whose model `slow` runs one request until it is released."""
    with start(slow_alone, grpc_port=0, grace_seconds=0) as service, running(service):
        yield service
        hold.release()


def queued(service: Service) -> float:
    return service.metric('bnfold_queue_rows{model="slow",version="1"}')


# The messages


def test_the_descriptors_are_made_from_the_proto(tmp_path: Path) -> None:
    made = tmp_path / "inference.binpb"
    options = [f"-I{PROTO.parent}", f"--descriptor_set_out={made}", PROTO.name]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], check=True)
    assert made.read_bytes() == PROTO.with_suffix(".binpb").read_bytes(), "the .proto says how to make it anew"


def test_names_and_numbers_are_those_of_the_clients() -> None:
    [ours] = FileDescriptorSet.FromString(PROTO.with_suffix(".binpb").read_bytes()).file
    theirs = FileDescriptorProto()
    for module in (service_pb2, model_config_pb2):
        theirs.MergeFromString(module.DESCRIPTOR.serialized_pb)
    known = described(theirs.message_type)
    found = described(ours.message_type)
    assert len(found) > 100
    assert found.items() <= known.items()
    methods = {
        m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in theirs.service[0].method
    }
    assert [service.name for service in ours.service] == [service.name for service in theirs.service]
    for m in ours.service[0].method:
        assert methods[m.name] == (m.input_type, m.output_type, m.client_streaming, m.server_streaming)
    enums = {(enum.name, v.name): v.number for enum in theirs.enum_type for v in enum.value}
    assert {(enum.name, v.name): v.number for enum in ours.enum_type for v in enum.value} == enums


def described(messages: Any, inside: str = "") -> dict[tuple[str, str], Any]:
    """What fields and values of enums are on the wire, by message and name."""
    found: dict[tuple[str, str], Any] = {}
    for kind in messages:
        assert isinstance(kind, DescriptorProto)
        name = f"{inside}{kind.name}"
        for field in kind.field:
            assert isinstance(field, FieldDescriptorProto)
            found[name, field.name] = (field.number, field.type, field.label, field.type_name)
        for enum in kind.enum_type:
            found |= {(f"{name}.{enum.name}", value.name): value.number for value in enum.value}
        found |= described(kind.nested_type, f"{name}.")
    return found


# Its place


def test_it_is_off_unless_asked_for(repository: Path) -> None:
    with start(repository) as without:
        assert "grpc" not in without.lines[-1]
    code = "import sys, service.app; print(sorted({'grpc', 'google.protobuf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_start_line_tells_both(service: Service) -> None:
    assert service.lines[-1].endswith(f" on {service.url} and grpc://{service.grpc} (cpu)")


def test_a_taken_port_is_one_clear_line(repository: Path, service: Service) -> None:
    port = service.grpc.rsplit(":", 1)[1]
    with start_process(repository, ready=False, grpc_port=port) as other:
        assert other.process.wait(PATIENCE) == 2
    text = f"port {port} on 127.0.0.1 is taken; stop what listens there, or choose another with --grpc-port"
    assert other.lines == [f"bnfold: {text}"]


def test_messages_of_others_in_the_same_process(repository: Path) -> None:
    """The client's module and ours use the same names."""
    code = "import tritonclient.grpc, service.grpc.server, tritonclient.grpc.aio; print('both')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "both"


# One queue


def test_both_share_batches(busy: Service, hold: Hold) -> None:
    """Two requests of each kind wait behind a run, and are one batch then."""
    answers: list[float] = []

    def over_http(value: float) -> None:
        answers.append(busy.post("/v2/models/slow/infer", json=row(value)).json()["outputs"][0]["data"][0])

    def over_grpc(value: float) -> None:
        with triton.InferenceServerClient(busy.grpc) as client:
            answers.append(client.infer("slow", [tensor("x", [[value]])]).as_numpy("y")[0, 0])

    threads = [
        threading.Thread(target=way, args=(value,))
        for way, values in ((over_http, (0.25, 0.5)), (over_grpc, (0.125, 0.75)))
        for value in values
    ]
    for thread in threads:
        thread.start()
    until(lambda: queued(busy) == 4)
    hold.release()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0.125, 0.25, 0.5, 0.75]
    [statistics] = busy.get("/v2/models/slow/stats").json()["model_stats"]
    assert [batch["batch_size"] for batch in statistics["batch_stats"]] == [1, 4]
    assert busy.metric('bnfold_requests_total{model="slow",route="grpc",status="2xx",version="1"}') == 2


def test_the_clients_deadline_ends_the_wait(busy: Service) -> None:
    with triton.InferenceServerClient(busy.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [tensor("x", [[1]])], client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    until(lambda: queued(busy) == 0)
    assert busy.metric('bnfold_running_rows{model="slow",version="1"}') == 1, "it did not wait for the run"


def test_the_timeout_of_a_request(busy: Service) -> None:
    with triton.InferenceServerClient(busy.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [tensor("x", [[1]])], timeout=1000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert caught.value.message().startswith("model slow/1: ")
    assert busy.metric('bnfold_errors_total{kind="deadline",model="slow",version="1"}') == 1


def test_a_cancelled_request_leaves_the_queue(busy: Service) -> None:
    ends: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(busy.grpc) as client:
        call = client.async_infer("slow", [tensor("x", [[1]])], lambda result, error: ends.put(error))
        until(lambda: queued(busy) == 1)
        call.cancel()
        assert ends.get(timeout=PATIENCE).status() == "StatusCode.CANCELLED"
        until(lambda: queued(busy) == 0)
    assert busy.metric('bnfold_running_rows{model="slow",version="1"}') == 1
    assert busy.metric('bnfold_errors_total{kind="client_gone",model="slow",version="1"}') == 1


def test_a_cancelled_stream_takes_its_requests_along(busy: Service) -> None:
    never = threading.Event()

    def requests() -> Iterator[Any]:
        yield from (message("slow", "x", [[np.float32(value)]]) for value in range(3))
        never.wait(PATIENCE)

    with connected(busy) as stub:
        stream = stub.ModelStreamInfer(requests())
        until(lambda: queued(busy) == 3)
        stream.cancel()
        until(lambda: queued(busy) == 0)
        never.set()
    assert busy.metric('bnfold_running_rows{model="slow",version="1"}') == 1


def test_a_full_queue_says_when_to_come_again(slow_alone: Path) -> None:
    with start(slow_alone, grpc_port=0, queue_rows=0) as service, held() as hold, running(service):
        with connected(service) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message("slow", "x", [[np.float32(1)]]))
        hold.release()
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    told = dict(caught.value.trailing_metadata())
    assert int(told["retry-after"]) >= 1
    assert told["grpc-retry-pushback-ms"] == f"{told['retry-after']}000", "as gRPC's own retries read it"


def test_a_run_that_fails_is_internal_and_no_neighbours(service: Service) -> None:
    with connected(service) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message("pick", "index", np.array([99]), "INT64"))
        assert caught.value.code() is Code.INTERNAL
        assert caught.value.details().startswith("model pick/1: the run failed: ")
        assert stub.ModelInfer(message("pick", "index", np.array([3]), "INT64")).raw_output_contents[0]


def test_a_model_that_cannot_serve_says_why(client: triton.InferenceServerClient) -> None:
    assert not client.is_model_ready("broken")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("broken", [tensor("image", np.zeros((1, 1, 8, 8)))])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert "was changed after it was written" in caught.value.message()


# Messages


def test_what_is_no_message(service: Service) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        for method in ("ModelInfer", "ModelMetadata", "RepositoryIndex"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xffno message")
            assert caught.value.code() is Code.INVALID_ARGUMENT
            assert f"the message is no inference.{method}Request" in caught.value.details()
        for method in (f"/{SERVICE}/SystemSharedMemoryStatus", f"/{SERVICE}/NoSuchMethod", "/no.Service/Method"):
            assert code_of(lambda method=method: channel.unary_unary(method)(b"")) is Code.UNIMPLEMENTED


def test_what_is_no_message_in_a_stream(service: Service) -> None:
    """It has an answer like the others, and those behind it have theirs."""
    right = message("free", "x", np.ones((1, 2), np.float32))
    right.id = "right"
    with grpc.insecure_channel(service.grpc) as channel:
        method = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        contents = [b"\xff\xff\xffno message", right.SerializeToString()]
        answers = [service_pb2.ModelStreamInferResponse.FromString(answer) for answer in method(iter(contents))]
    assert [bool(answer.error_message) for answer in answers] == [True, False]
    assert answers[1].infer_response.id == "right"


def test_an_error_in_a_stream_has_the_id(service: Service) -> None:
    wrong = message("free", "y", np.ones((1, 2), np.float32))
    wrong.id = "17"
    with connected(service) as stub:
        [answer] = stub.ModelStreamInfer(iter([wrong]))
    assert answer.error_message == "no input is named 'y'; expected 'x'"
    assert answer.infer_response == service_pb2.ModelInferResponse(id="17")


def test_a_stream_of_more_than_may_be_under_way(service: Service) -> None:
    """A client that sends all before it reads."""
    requests = [message("free", "x", np.full((1, 2), number, np.float32)) for number in range(1000)]
    with connected(service) as stub:
        answers = list(stub.ModelStreamInfer(iter(requests)))
    totals = [np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)[0] for answer in answers]
    assert totals == [2.0 * number for number in range(1000)]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_huge_messages_are_refused(repository: Path, compression: grpc.Compression) -> None:
    """As they arrive and as they unpack; what is within the limit is served, also behind one that is not."""
    with start(repository, grpc_port=0, max_body_bytes=1 << 16, grace_seconds=0) as service, connected(service) as stub:
        for columns, code in ((1 << 16, Code.RESOURCE_EXHAUSTED), (1 << 13, Code.OK)):
            made = message("free", "x", np.zeros((1, columns), np.float32))
            assert code_of(lambda made=made: stub.ModelInfer(made, compression=compression)) is code
        made = message("free", "x", np.zeros((1, 1 << 16), np.float32))
        assert code_of(lambda: list(stub.ModelStreamInfer(iter([made]), compression=compression))) is (
            Code.RESOURCE_EXHAUSTED
        )
        assert service.metric('bnfold_requests_total{model="free",route="grpc",status="2xx",version="1"}') == 1


def test_answers_may_be_larger_than_requests(tmp_path: Path, repository: Path) -> None:
    shutil.copytree(repository / "pick", tmp_path / "pick")
    with start(tmp_path, grpc_port=0, max_body_bytes=1 << 10, grace_seconds=0) as service, connected(service) as stub:
        answer = stub.ModelInfer(message("pick", "index", np.zeros(64, np.int64), "INT64"))
        made = service_pb2.ModelInferRequest(model_name="pick")
        made.inputs.add(name="index", datatype="INT64", shape=[1000]).contents.int64_contents.extend([1] * 1000)
        assert code_of(lambda: stub.ModelInfer(made)) is Code.RESOURCE_EXHAUSTED, "beyond the limit"
        made.inputs[0].shape[:] = [900]
        del made.inputs[0].contents.int64_contents[900:]
        large = stub.ModelInfer(made)
    assert len(answer.raw_output_contents[0]) == 4 * 64
    assert len(large.raw_output_contents[0]) == 4 * 900


def test_shared_memory_is_refused_in_words(service: Service) -> None:
    made = message("free", "x", np.ones((1, 2), np.float32))
    made.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with connected(service) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(made)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "shared memory is not offered" in caught.value.details()


@pytest.mark.parametrize("which", [0, 1, "output"])
def test_shared_memory_for_one_of_several_tensors_is_refused_in_the_same_words(service: Service, which: Any) -> None:
    """The tensors that are not in shared memory have raw contents, so these are fewer than the inputs."""
    made = service_pb2.ModelInferRequest(model_name="pair")
    for index, name in enumerate("ab"):
        made.inputs.add(name=name, datatype="FP32", shape=[1, 2])
        if index != which:
            made.raw_input_contents.append(bytes(8))
    asked = made.outputs.add(name="sum") if which == "output" else made.inputs[which]
    asked.parameters["shared_memory_region"].string_param = "region"
    asked.parameters["shared_memory_byte_size"].int64_param = 8
    with connected(service) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(made)
    assert (caught.value.code(), caught.value.details()) == (
        Code.INVALID_ARGUMENT, "shared memory is not offered; send the tensor in the body",
    )  # fmt: skip


def test_no_call_of_a_burst_is_cancelled(repository: Path) -> None:
    """gRPC's core holds those that were not taken yet, and by default cancels some of them from the thousandth on."""
    calls = 1600
    made = message("free", "x", np.ones((1, 2), np.float32))

    async def everyone(address: str) -> Counter[Code]:
        async def one(stub: Any) -> Code:
            try:
                await stub.ModelInfer(made, timeout=PATIENCE)
            except grpc.RpcError as error:
                return error.code()
            return Code.OK

        async with grpc.aio.insecure_channel(address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            return Counter(await asyncio.gather(*(one(stub) for _ in range(calls))))

    with start(repository, grpc_port=0, queue_rows=calls, max_connections=calls, grace_seconds=0) as service:
        assert asyncio.run(everyone(service.grpc)) == {Code.OK: calls}


def test_calls_beyond_the_limit_are_refused_with_a_status(repository: Path) -> None:
    """A stream is one call, as long as it is open."""
    made = message("free", "x", np.ones((1, 2), np.float32))
    ends = threading.Event()

    def requests() -> Iterator[Any]:
        yield made
        ends.wait(PATIENCE)

    with start(repository, grpc_port=0, max_connections=3, grace_seconds=0) as service, connected(service) as stub:
        streams = [stub.ModelStreamInfer(requests()) for _ in range(3)]
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(made)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        ends.set()
        assert [list(stream) for stream in streams] == [[], [], []]
        until(lambda: code_of(lambda: stub.ModelInfer(made)) is Code.OK)


def test_each_answer_of_a_stream_is_the_last_of_its_request(service: Service) -> None:
    """Clients of streams wait for it, and as in Triton an error has none."""
    right, wrong = (message(name, "x", np.ones((1, 2), np.float32)) for name in ("free", "nobody"))
    with connected(service) as stub:
        answers = list(stub.ModelStreamInfer(iter([right, wrong, right])))
        alone = stub.ModelInfer(right)
    said = [dict(answer.infer_response.parameters) for answer in answers]
    final = service_pb2.InferParameter(bool_param=True)
    assert said == [{"triton_final_response": final}, {}, {"triton_final_response": final}]
    assert not alone.parameters


# Who may


def test_tokens(repository: Path) -> None:
    with start(repository, grpc_port=0, tokens="open-sesame", grace_seconds=0) as service:
        with connected(service) as stub:
            for metadata, code in (
                ((), Code.UNAUTHENTICATED),
                ((("authorization", "Bearer another"),), Code.UNAUTHENTICATED),
                ((("authorization", "Bearer open-sesame"),), Code.OK),
            ):
                made = message("free", "x", np.ones((1, 2), np.float32))
                assert code_of(lambda made=made, m=metadata: stub.ModelInfer(made, metadata=m)) is code
                assert code_of(lambda m=metadata: list(stub.ModelStreamInfer(iter([]), metadata=m))) is code
                asked = service_pb2.ServerMetadataRequest()
                assert code_of(lambda m=metadata, asked=asked: stub.ServerMetadata(asked, metadata=m)) is code
            assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        with grpc.insecure_channel(service.grpc) as channel:
            assert checked(channel) == health_pb2.HealthCheckResponse.SERVING
            services = ProtoReflectionDescriptorDatabase(channel).get_services
            assert code_of(services) is Code.UNAUTHENTICATED


def test_load_and_unload_are_off_by_default(client: triton.InferenceServerClient) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            change("net")
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        assert "repository_control is fixed" in caught.value.message()


def test_load_and_unload_by_an_admin(repository: Path) -> None:
    tokens = {"tokens": "user", "admin_token": "admin", "repository_control": "explicit", "models": "*"}
    with (
        start(repository, grpc_port=0, grace_seconds=0, **tokens) as service,
        triton.InferenceServerClient(service.grpc) as client,
    ):
        user, admin = ({"authorization": f"Bearer {token}"} for token in ("user", "admin"))
        with pytest.raises(InferenceServerException) as caught:
            client.unload_model("net", headers=user)
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        client.unload_model("net", headers=admin)
        assert not client.is_model_ready("net", headers=user)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("net", [tensor("image", np.zeros((1, 1, 8, 8)))], headers=user)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        client.load_model("net", headers=admin)
        assert client.is_model_ready("net", headers=user)
        for name, options, words in (
            ("net", {"config": json.dumps({"max_batch_size": 1})}, "a config is not taken"),
            ("net", {"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "files are not taken here"),
        ):
            with pytest.raises(InferenceServerException, match=words) as caught:
                client.load_model(name, headers=admin, **options)
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("no-such-model", headers=admin)
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_over_tls(repository: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*openssl, *names], check=True, capture_output=True)
    with start(repository, grpc_port=0, tls_certificate=certificate, tls_key=key, grace_seconds=0) as service:
        assert f" and grpcs://{service.grpc} (" in service.lines[-1]
        with triton.InferenceServerClient(service.grpc, ssl=True, root_certificates=str(certificate)) as client:
            assert client.infer("free", [tensor("x", [[1, 2]])]).as_numpy("total").tolist() == [3.0]
        with connected(service) as stub:
            live = service_pb2.ServerLiveRequest()
            assert code_of(lambda: stub.ServerLive(live, timeout=PATIENCE)) is Code.UNAVAILABLE, "nothing without TLS"


# Health, reflection, the log


def checked(channel: Any, name: str = "") -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name)).status


def test_health(service: Service) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        for name in ("", SERVICE):
            assert checked(channel, name) == health_pb2.HealthCheckResponse.SERVING
        assert code_of(lambda: checked(channel, "no.such.Service")) is Code.NOT_FOUND


def test_who_watches_health_is_told_of_the_end(repository: Path) -> None:
    """Readiness goes first, over both, while requests are still served."""
    with (
        start_process(repository, grpc_port=0, grace_seconds=30) as service,
        connected(service) as stub,
        grpc.insecure_channel(service.grpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        service.process.terminate()
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert checked(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
        assert stub.ModelInfer(message("free", "x", np.ones((1, 2), np.float32))).outputs
        service.process.terminate()  # the second signal means now
        assert service.process.wait(PATIENCE) == 0


def test_reflection_tells_what_is_served(service: Service) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        for name in database.get_services():
            assert name.rsplit(".", 1)[1] in {s.name for s in database.FindFileContainingSymbol(name).service}
        [ours] = FileDescriptorSet.FromString(PROTO.with_suffix(".binpb").read_bytes()).file
        assert database.FindFileContainingSymbol(SERVICE) == ours


def test_the_access_log_has_a_line_for_each_call(repository: Path) -> None:
    with start_process(repository, grpc_port=0, access_log=True, log_format="json", grace_seconds=0) as service:
        address = json.loads(service.lines[-1])["message"].split("grpc://")[1].split(" ")[0]
        with grpc.insecure_channel(address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            stub.ModelInfer(message("free", "x", np.ones((1, 2), np.float32)), metadata=(("x-request-id", "mine"),))
            code_of(lambda: stub.ModelInfer(message("nobody", "x", np.ones((1, 2), np.float32))))
    logged = [json.loads(line) for line in service.lines[1:]]
    lines = [line for line in logged if line["logger"] == "bnfold.access"]
    assert [(line["path"], line["status"]) for line in lines] == [
        (f"/{SERVICE}/ModelInfer", "OK"),
        (f"/{SERVICE}/ModelInfer", "NOT_FOUND"),
    ]
    assert lines[0]["request_id"] == "mine"
    assert lines[0]["client"].startswith("ipv4:127.0.0.1:")


# The end


@pytest.mark.parametrize("anew", [False, True], ids=["kept", "anew"])
def test_sigterm_under_load_loses_no_request(repository: Path, anew: bool) -> None:
    """Every request is answered, or refused in words that it was not taken; none is left in doubt."""
    answered, ends = [0] * 12, []
    made = message("free", "x", np.array([[1, 2, 3]], np.float32))
    with start_process(repository, grpc_port=0, grace_seconds=0.3) as service:

        def client(number: int) -> None:
            while True:
                with connected(service) as stub:
                    while True:
                        try:
                            answer = stub.ModelInfer(made)
                        except grpc.RpcError as error:
                            ends.append(error)
                            return
                        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [6.0]
                        answered[number] += 1
                        if anew:
                            break

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(answered))]
        for thread in threads:
            thread.start()
        until(lambda: min(answered) >= 3)
        service.process.terminate()
        for thread in threads:
            thread.join()
        assert service.process.wait(PATIENCE) == 0
    assert {error.code() for error in ends} == {Code.UNAVAILABLE}
    words = {error.details() for error in ends}
    assert all(text == STOPPING or (anew and text.startswith("failed to connect")) for text in words), words


def test_sigterm_answers_what_is_queued(slow_alone: Path, tmp_path: Path) -> None:
    """And does not wait for streams on which nobody says anything."""
    file = tmp_path / "hold"
    with (
        start_process(slow_alone, code=held_by(file), grpc_port=0, grace_seconds=0) as busy,
        running(busy),
        connected(busy) as stub,
        connected(busy) as streaming,
        grpc.insecure_channel(busy.grpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        calls = [stub.ModelInfer.future(message("slow", "x", [[np.float32(value)]])) for value in range(8)]
        ahead = threading.Event()

        def requests() -> Iterator[Any]:
            yield from (message("slow", "x", [[np.float32(value)]]) for value in range(3))
            ahead.wait(PATIENCE)

        stream = streaming.ModelStreamInfer(requests())
        until(lambda: queued(busy) == 11)
        busy.process.send_signal(signal.SIGTERM)
        file.unlink()
        assert [np.frombuffer(c.result().raw_output_contents[0], np.float32)[0] for c in calls] == list(range(8))
        answers = [next(stream) for _ in range(3)]
        assert [answer.error_message for answer in answers] == [""] * 3
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        ahead.set()
        assert (caught.value.code(), "open the stream elsewhere" in caught.value.details()) == (Code.UNAVAILABLE, True)
        assert busy.process.wait(PATIENCE) == 0
    assert busy.lines[-1].startswith("bnfold: serving"), "nothing more was said"


def test_a_second_signal_means_now(slow_alone: Path, tmp_path: Path) -> None:
    code = held_by(tmp_path / "hold")
    with start_process(slow_alone, code=code, grpc_port=0, grace_seconds=0) as service, connected(service) as stub:
        running = stub.ModelInfer.future(message("slow", "x", [[np.float32(HELD)]]))
        waiting = stub.ModelInfer.future(message("slow", "x", [[np.float32(HELD)]]))
        until(lambda: queued(service) == 1)
        service.process.terminate()
        with connected(service) as another:
            until(lambda: code_of(lambda: another.ServerReady(service_pb2.ServerReadyRequest())) is not Code.OK)
        service.process.terminate()
        assert code_of(running.result) is not Code.OK
        assert code_of(waiting.result) is not Code.OK
        assert service.process.wait(PATIENCE) == 0
    assert service.lines[-1].startswith("bnfold: serving"), "nothing more was said"
