"""`bnfold serve`."""

import os
from typing import Annotated

import typer

from fold.cli.options import DEVICES


def serve(
    repository: Annotated[
        str,
        typer.Argument(
            help="The model repository, as written by bnfold fold --out: a folder, s3://, gs:// or https://."
        ),
    ],
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Serve only these models; * is all.", show_default="all, or none if calls load them"
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port, 0 for a free one.", show_default="8000")
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the same protocol over gRPC, 0 for a free one.", show_default="off"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar=DEVICES, help="Where ONNX Runtime computes.", show_default="auto")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=0, help="Threads inside one operator; 0 chooses for each model.", show_default="0")
    ] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in one batch.", show_default="64")] = None,
    shadow: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Share of the responses to compare with the reference.",
            show_default="0",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None, typer.Option("--cuda-graphs", help="Launch the kernels of a batch as one CUDA graph.")
    ] = None,
    nhwc: Annotated[
        bool | None, typer.Option("--nhwc", help="Store tensors with the channels last on the GPU.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Poll REPOSITORY: load new versions, unload removed ones.")
    ] = False,
) -> None:
    """Serve every model of REPOSITORY over HTTP and gRPC until SIGTERM. BNFOLD_… variables are settings too."""
    from service.app import serve as serve_repository  # noqa: PLC0415
    from service.settings import load_settings  # noqa: PLC0415

    # 1. Settings: an option wins over its BNFOLD_… variable.
    settings = load_settings(
        repository=repository,
        models=models,
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
    # 2. Serve until SIGTERM.
    raise typer.Exit(serve_repository(settings))


def check_environment() -> None:
    """Raise `BnfoldError` for a misspelt variable: fold, too, has settings that are variables, and they are limits."""
    if any(name.startswith("BNFOLD_") for name in os.environ):
        from service.settings import refuse_unknown_variables  # noqa: PLC0415

        refuse_unknown_variables()
