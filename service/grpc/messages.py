"""The messages of inference.proto, made from the descriptors in inference.binpb.

They are in a descriptor pool of their own: another client or server of the protocol in the same process has messages
with the same names, and a pool takes each name once.
"""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.errors import BadRequestError

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
DESCRIPTORS = Path(__file__).with_name("inference.binpb")

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
    POOL.AddSerializedFile(_file.SerializeToString())


def message_class(name: str) -> Any:
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")


def parse(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise malformed(kind) from error


def malformed(kind: Any) -> BadRequestError:
    return BadRequestError(f"the message is no {kind.DESCRIPTOR.full_name}; is it of another protocol?")


def parameters(held: Any) -> dict[str, Any]:
    """A map of InferParameter or ModelRepositoryParameter as Python values; None for an empty parameter."""
    found = {}
    for key, parameter in held.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(parameter, choice)
    return found
