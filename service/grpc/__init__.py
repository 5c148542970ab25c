"""The Open Inference Protocol over gRPC."""

from service.grpc.server import GrpcServer

__all__ = ["GrpcServer"]
