"""The command line: a thin caller of what the library does.

Exit 0: done. 1: the proof failed. 2: bad input or usage, said in one line on stderr. Tables and progress go to stderr
and `--json` prints one object on stdout, so that a program can always read stdout.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from fold.errors import BnfoldError

# Typer's own base of usage errors: click's in older versions, its own copy of click in newer ones.
UsageError: Any = typer.BadParameter.__bases__[0]
PROOF_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="bnfold",
    help="Fold trained BatchNorm into the weights around it, prove that the model is the same, and serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

Provider = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where ONNX Runtime computes; auto takes a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Samples = Annotated[int, typer.Option(min=1, max=4096, help="How many inputs to draw for the proof.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the inputs that are drawn.")]


@app.command()
def fold(
    source: Annotated[Path, typer.Argument(help="A state_dict (.pt, .pth, .ckpt, .bin, .safetensors), .pt2 or .onnx.")],
    out: Annotated[Path, typer.Option(metavar="REPOSITORY", help="The model repository to publish into.")],
    name: Annotated[str | None, typer.Option(help="The model's name; the file's name by default.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="The version; the next free one by default.")] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="MODULE:CALLABLE", help="What makes the module of a state_dict.")
    ] = None,
    arch_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument for it.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="SHAPE", help="An input without the batch: 3,224,224 or name:3,224,224:float32."
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with one class label a line.")] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="How images become inputs (JSON, docs/formats.md).")
    ] = None,
    open_activations: Annotated[
        bool,
        typer.Option("--open-activations", help="Let a ReLU become a clip by channel where a BatchNorm would stay."),
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(help="In which type the graph computes; what does not fit into it stays in float32."),
    ] = "fp32",
    samples: Samples = 16,
    seed: Seed = 0,
    provider: Provider = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="Open a .pt2, which can run code of its author.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fold SOURCE, prove it, and publish it as REPOSITORY/NAME/VERSION."""
    from fold.convert import Source, Target, convert  # noqa: PLC0415
    from fold.report import certificate_table, fold_table  # noqa: PLC0415

    with console.status("starting") as status:
        conversion = convert(
            Source(source, arch, arch_arg or (), inputs or (), trust),
            Target(out, name, version, labels, preprocessing),
            open_activations=open_activations,
            precision=precision,
            samples=samples,
            seed=seed,
            provider=provider,
            announce=lambda step: status.update(escape(step)),
        )
    for change in conversion.changes:
        console.print(f"{escape(str(source))}: {escape(change)}", soft_wrap=True, highlight=False)
    if as_json:
        _print_json(conversion.to_dict())
    else:
        report = conversion.report
        console.print(fold_table(report))
        console.print(
            f"\n{report.batchnorms} BatchNorms: [bold]{len(report.folded)} folded[/], {len(report.kept)} kept; "
            f"{report.branches_merged} parallel branches merged; {report.seconds:.2f} s.",
            highlight=False,
        )
        for stayed in conversion.precision.kept_float32:
            text = f"{stayed.layer} stays in float32: {stayed.reason}"
            console.print(escape(text), soft_wrap=True, highlight=False)
        console.print(certificate_table(conversion.certificate))
    if conversion.path is None:
        console.print(f"[red]{escape(conversion.certificate.message)}; nothing was published[/]", soft_wrap=True)
        raise typer.Exit(PROOF_FAILED)
    console.print(f"[green]{escape(conversion.certificate.message)}[/]", soft_wrap=True, highlight=False)
    console.print(f"published {escape(str(conversion.path))}", soft_wrap=True, highlight=False)


@app.command()
def verify(
    model_dir: Annotated[Path, typer.Argument(help="REPOSITORY/NAME/VERSION, or REPOSITORY/NAME for the latest.")],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz|FOLDER", help="Arrays by input name, or a folder of such files or images."),
    ] = None,
    samples: Samples = 16,
    seed: Seed = 0,
    provider: Provider = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="The precision that the model must be in.")
    ] = None,
    search: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Search so long for the largest difference.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Prove a published model again, on this machine, from its directory alone."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415

    from fold.artifact import read_version  # noqa: PLC0415
    from fold.certificate import certify  # noqa: PLC0415
    from fold.inputs import read_inputs  # noqa: PLC0415
    from fold.report import certificate_table  # noqa: PLC0415

    folder = _version_folder(model_dir)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20))
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(f"reading {escape(str(folder))}", total=None)
        version = read_version(folder)
        if precision not in (None, version.manifest.precision):
            raise BnfoldError(
                f"{version.model_file}: is in {version.manifest.precision}, not in {precision}; "
                f"fold the model again with --precision {precision}"
            )
        certificate = certify(
            version,
            None if inputs is None else read_inputs(inputs, version.manifest),
            samples=samples,
            seed=seed,
            provider=provider,
            search_seconds=search,
            announce=lambda step: shown.reset(task, total=None, description=escape(step)),
            progress=lambda step, steps, found: shown.update(
                task, total=steps, completed=step, description=f"searching: {found:.3g} found"
            ),
        )
    if as_json:
        _print_json({"model": version.manifest.name, "version": version.manifest.version, **certificate.to_dict()})
    else:
        console.print(certificate_table(certificate))
    colour = "green" if certificate else "red"
    console.print(f"[{colour}]{escape(certificate.message)}[/]", soft_wrap=True, highlight=False)
    if not certificate:
        raise typer.Exit(PROOF_FAILED)


@app.command()
def bench(
    model_dir: Annotated[Path, typer.Argument(help="REPOSITORY/NAME/VERSION, or REPOSITORY/NAME for the latest.")],
    batch: Annotated[str | None, typer.Option(metavar="N,N,…", help="Rows in one run [1,8,32].")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How often each graph is timed.")] = 50,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to measure; auto is everywhere that is present.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads inside one operator, 0 for all cores.")] = 0,
    seed: Seed = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the latencies as bars.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time a published model unfolded and folded, in turn, after both were seen to answer right."""
    from fold.artifact import read_version  # noqa: PLC0415
    from fold.bench import AnswersDifferError, bench_version, parse_batches  # noqa: PLC0415
    from fold.bench_report import bench_table, captions, check_picture, write_picture  # noqa: PLC0415

    batches = None if batch is None else parse_batches(batch)
    if picture is not None:
        check_picture(picture)
    try:
        # a status that turns 12 times a second would take its share of what is measured
        with console.status("starting", refresh_per_second=1) as status:
            benchmark = bench_version(
                read_version(_version_folder(model_dir)),
                batches=batches,
                rounds=rounds,
                provider=provider,
                threads=threads,
                seed=seed,
                announce=lambda step: status.update(escape(step)),
            )
    except AnswersDifferError as error:
        raise typer.Exit(_complain(str(error), PROOF_FAILED)) from error
    if as_json:
        _print_json(benchmark.to_dict())
    else:
        console.print(f"[bold]{escape(benchmark.model)}[/] version {benchmark.version}", highlight=False)
        for line in captions(benchmark):
            console.print(escape(line), soft_wrap=True, highlight=False)
        console.print()
        console.print(bench_table(benchmark))
    if picture is not None:
        write_picture(picture, benchmark)
        console.print(f"drawn {escape(str(picture))}", soft_wrap=True, highlight=False)


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="The model repository that bnfold fold published into.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, 0 for a free one [8000].")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the same protocol over gRPC, 0 for a free one [off].")
    ] = None,
    provider: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where to compute [auto].")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Threads inside one operator, 0 for all cores.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in one batch [64].")] = None,
    shadow: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of the answers to hold against the reference [0]."),
    ] = None,
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
        provider=provider,
        threads=threads,
        max_batch_size=max_batch_size,
        shadow=shadow,
        repository_control="watch" if watch else None,
    )
    raise typer.Exit(serve_repository(settings))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    warnings.simplefilter("ignore")  # of libraries, to which a user can do nothing
    try:
        code = app(args=arguments, prog_name="bnfold", standalone_mode=False)
    except BnfoldError as error:
        code = _complain(str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "bnfold"
        code = _complain(f"{error.format_message()} See {command} --help.")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has left; python would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _version_folder(model_dir: Path) -> Path:
    """The latest version in REPOSITORY/NAME; what is no such folder is taken for a version itself."""
    from fold.artifact import version_numbers  # noqa: PLC0415

    numbers = version_numbers(model_dir)
    return model_dir / str(numbers[-1]) if numbers else model_dir


def _complain(message: str, code: int = BAD_INPUT) -> int:
    sys.stderr.write(f"bnfold: {' '.join(message.split())}\n")
    return code


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
