"""Serves a model repository over HTTP and gRPC, and proves what it serves."""
