"""The protocol over gRPC."""

from service.grpc.server import Rpc

__all__ = ["Rpc"]
