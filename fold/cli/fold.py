"""`bnfold fold`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fold.cli.bar import StepBar
from fold.cli.limited import watch
from fold.cli.options import (
    PROOF_FAILED,
    All,
    Arch,
    ArchArg,
    AsJson,
    Batch,
    Device,
    Ema,
    Inputs,
    Key,
    Overridable,
    Seed,
    SourceFile,
    Trust,
    console,
    print_changes,
    print_json,
    refuse_missing,
)
from fold.errors import BnfoldError
from fold.terminal import escape

if TYPE_CHECKING:
    from fold.convert import Conversion

KEPT_FLOAT32 = 3
"""How many layers that stay in float32 the short form names; it counts the others."""

Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS|preprocessing",
        help="Let the model take bytes, with (x*scale - mean)/std for each channel in the graph: "
        "mean=0.5,std=0.25,scale=1/255, or numbers by channel, mean=0.485,0.456,0.406 "
        "(NAME:mean=… if there are several inputs), or the word preprocessing for its numbers.",
    ),
]
AxisOrder = Annotated[
    Literal["nchw", "nhwc"] | None,
    typer.Option(help="Order of the axes of the bytes of --normalize.", show_default="that of the model"),
]
OPENING = "--open-activations"
OpenActivations = Annotated[
    Literal["never", "always", "auto"],
    typer.Option(
        OPENING,
        metavar="[auto]",
        help="Rewrite a ReLU as a clip by channel if that removes a BatchNorm that would stay; with auto only if the "
        "graph becomes faster on --device.",
        show_default=False,
    ),
]
FoldSamples = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="How many random inputs the proof uses.",
        show_default="16, or 2 for a graph that is not changed",
    ),
]
Precision = Annotated[
    Literal["fp32", "tf32", "fp16", "bf16"],
    typer.Option(help="The type in which the graph computes; nodes that it does not fit stay in float32."),
]


class FoldCommand(TyperCommand):
    """Gives `--open-activations` a value where it has none: options of Typer take one always, or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        for place in [place for place, word in enumerate(words) if word == OPENING]:
            if words[place + 1 : place + 2] != ["auto"]:
                words[place] = f"{OPENING}=always"
        return super().parse_args(ctx, words)


def fold(
    source: SourceFile,
    out: Annotated[
        Path, typer.Option(metavar="REPOSITORY", help="The model repository in which the model is published.")
    ],
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="that of SOURCE")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="The version.", show_default="the next free one")] = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    inputs: Inputs = None,
    batch: Batch = None,
    overridable: Overridable = False,
    key: Key = None,
    ema: Ema = False,
    labels: Annotated[Path | None, typer.Option(help="A text file with one class label on each line.")] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="How images become inputs (JSON, docs/formats.md).")
    ] = None,
    normalize: Normalize = None,
    layout: AxisOrder = None,
    open_activations: OpenActivations = "never",
    precision: Precision = "fp32",
    samples: FoldSamples = None,
    seed: Seed = 0,
    device: Device = "auto",
    trust: Trust = False,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Fold SOURCE, prove it, and publish it as REPOSITORY/NAME/VERSION."""
    # 1. Check the options.
    refuse_missing(source)
    if layout is not None and normalize is None:
        raise BnfoldError(
            f"--layout {layout}: only bytes of --normalize have a layout; add --normalize, or leave out --layout"
        )
    # 2. Read, fold, prove and publish. The imports take a second.
    watch(out)
    notes: list[str] = []
    with StepBar() as bar:
        from fold.convert import Target, convert  # noqa: PLC0415
        from fold.inputs import parse_scaling  # noqa: PLC0415
        from fold.runtime import collect_once  # noqa: PLC0415
        from fold.sources import Source  # noqa: PLC0415

        scaling = None if normalize is None else parse_scaling(normalize, layout, preprocessing)
        conversion = convert(
            Source(source, arch, arch_arg or (), inputs or (), trust, key, ema, scaling, batch, overridable),
            Target(out, name, version, labels, preprocessing),
            open_activations=open_activations if open_activations == "auto" else open_activations == "always",
            precision=precision,
            samples=samples,
            seed=seed,
            provider=device,
            announce=lambda step: bar.announce(step, notes),
            tell=notes.append,
            collect=collect_once,
        )
    # 3. Print what was decided while the source was read, and where each BatchNorm went. An error is one line, so notes
    # stand below the bar of a terminal until it is known that there is none.
    for note in notes:
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True, highlight=False)
    print_changes(source, conversion.changes, arch, conversion.arch_file)
    if as_json:
        print_json(conversion.to_dict())
    else:
        _print_tables(conversion, everything=everything)
    # 4. Print the verdict. The exit code says whether the model was published.
    if conversion.path is None:
        console.print(f"[red]{escape(conversion.certificate.message)}; nothing was published[/]", soft_wrap=True)
        raise typer.Exit(PROOF_FAILED)
    console.print(f"[green]{escape(conversion.certificate.message)}[/]", soft_wrap=True, highlight=False)
    console.print(f"published {escape(str(conversion.path))}", soft_wrap=True, highlight=False)


def _print_tables(conversion: "Conversion", *, everything: bool) -> None:
    from fold.reports import certificate_table, fold_summary, fold_table  # noqa: PLC0415

    report = conversion.report
    if everything:
        console.print(fold_table(report, width=console.width // 4))
        console.print()
    for line in fold_summary(report):
        console.print(line, soft_wrap=True, highlight=False)
    if conversion.opening is not None:
        console.print(escape(conversion.opening.message), soft_wrap=True, highlight=False)
    if report.normalization is not None:
        console.print(escape(report.normalization.message), soft_wrap=True, highlight=False)
    float32 = conversion.precision.kept_float32
    shown = float32 if everything else float32[:KEPT_FLOAT32]
    for stayed in shown:
        text = f"{stayed.layer} stays in float32: {stayed.reason}"
        console.print(escape(text), soft_wrap=True, highlight=False)
    if len(shown) < len(float32):
        console.print(f"{len(float32) - len(shown)} more layers stay in float32", highlight=False)
    console.print(certificate_table(conversion.certificate, every_output=everything))
