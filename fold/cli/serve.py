"""`bnfold serve`."""

from pathlib import Path
from typing import Annotated

import typer

from fold.cli.options import DEVICES


def serve(
    repository: Annotated[Path, typer.Argument(help="The model repository that bnfold fold published into.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, 0 for a free one [8000].")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the same protocol over gRPC, 0 for a free one [off].")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar=DEVICES, help="Where to compute [auto].")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Threads inside one operator, 0 for all cores.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in one batch [64].")] = None,
    shadow: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of the answers to hold against the reference [0]."),
    ] = None,
    cuda_graphs: Annotated[
        bool | None, typer.Option("--cuda-graphs", help="Launch the kernels of a batch as one CUDA graph.")
    ] = None,
    nhwc: Annotated[bool | None, typer.Option("--nhwc", help="Channels last on the GPU.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Load what comes into REPOSITORY, unload what goes.")] = False,
) -> None:
    """Serve every model of REPOSITORY over HTTP and gRPC until SIGTERM. Every BNFOLD_… variable is a setting, too."""
    from service.app import serve as serve_repository  # noqa: PLC0415
    from service.settings import load_settings  # noqa: PLC0415

    settings = load_settings(
        repository=repository,
        host=host,
        port=port,
        grpc_port=grpc_port,
        device=device,
        threads=threads,
        max_batch_size=max_batch_size,
        shadow=shadow,
        cuda_graphs=cuda_graphs,
        nhwc=nhwc,
        repository_control="watch" if watch else None,
    )
    raise typer.Exit(serve_repository(settings))
