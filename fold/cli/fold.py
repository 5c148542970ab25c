"""`bnfold fold`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from fold.cli.options import (
    PROOF_FAILED,
    Arch,
    ArchArg,
    AsJson,
    Device,
    Ema,
    Inputs,
    Key,
    Samples,
    Seed,
    SourceFile,
    Trust,
    console,
    print_json,
)
from fold.errors import BnfoldError
from fold.sources import Source


def fold(
    source: SourceFile,
    out: Annotated[Path, typer.Option(metavar="REPOSITORY", help="The model repository to publish into.")],
    name: Annotated[str | None, typer.Option(help="The model's name; the file's name by default.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="The version; the next free one by default.")] = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    inputs: Inputs = None,
    key: Key = None,
    ema: Ema = False,
    labels: Annotated[Path | None, typer.Option(help="A text file with one class label a line.")] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="How images become inputs (JSON, docs/formats.md).")
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS|preprocessing",
            help="Take bytes, and put (x*scale - mean)/std for each channel into the graph: "
            "mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255 (NAME:mean=… where there are several inputs), "
            "or by the numbers of the preprocessing.",
        ),
    ] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        typer.Option(help="How clients lay out the bytes of --normalize; as the model does by default."),
    ] = None,
    open_activations: Annotated[
        bool,
        typer.Option("--open-activations", help="Let a ReLU become a clip by channel where a BatchNorm would stay."),
    ] = False,
    precision: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"],
        typer.Option(help="In which type the graph computes; what does not fit into it stays in float32."),
    ] = "fp32",
    samples: Samples = 16,
    seed: Seed = 0,
    device: Device = "auto",
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Fold SOURCE, prove it, and publish it as REPOSITORY/NAME/VERSION."""
    from fold.convert import Target, convert  # noqa: PLC0415
    from fold.inputs import parse_scaling  # noqa: PLC0415
    from fold.reports import certificate_table, fold_table  # noqa: PLC0415

    if layout is not None and normalize is None:
        raise BnfoldError(f"--layout {layout}: is the layout of the bytes of --normalize; give that as well")
    standardised = None if normalize is None else parse_scaling(normalize, layout, preprocessing)
    with console.status("starting") as status:
        conversion = convert(
            Source(source, arch, arch_arg or (), inputs or (), trust, key, ema, standardised),
            Target(out, name, version, labels, preprocessing),
            open_activations=open_activations,
            precision=precision,
            samples=samples,
            seed=seed,
            provider=device,
            announce=lambda step: status.update(escape(step)),
        )
    for change in conversion.changes:
        console.print(f"{escape(str(source))}: {escape(change)}", soft_wrap=True, highlight=False)
    if as_json:
        print_json(conversion.to_dict())
    else:
        report = conversion.report
        console.print(fold_table(report))
        console.print(
            f"\n{report.batchnorms} BatchNorms: [bold]{len(report.folded)} folded[/], {len(report.kept)} kept; "
            f"{report.branches_merged} parallel branches merged; {report.seconds:.2f} s.",
            highlight=False,
        )
        if report.normalization is not None:
            console.print(escape(report.normalization.message), soft_wrap=True, highlight=False)
        for stayed in conversion.precision.kept_float32:
            text = f"{stayed.layer} stays in float32: {stayed.reason}"
            console.print(escape(text), soft_wrap=True, highlight=False)
        console.print(certificate_table(conversion.certificate))
    if conversion.path is None:
        console.print(f"[red]{escape(conversion.certificate.message)}; nothing was published[/]", soft_wrap=True)
        raise typer.Exit(PROOF_FAILED)
    console.print(f"[green]{escape(conversion.certificate.message)}[/]", soft_wrap=True, highlight=False)
    console.print(f"published {escape(str(conversion.path))}", soft_wrap=True, highlight=False)
