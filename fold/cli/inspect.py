"""`bnfold inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fold.cli.bar import StepBar
from fold.cli.options import (
    All,
    Arch,
    ArchArg,
    AsJson,
    Batch,
    Ema,
    Inputs,
    Key,
    Overridable,
    Trust,
    console,
    print_changes,
    print_json,
    refuse_missing,
)
from fold.errors import BnfoldError
from fold.terminal import escape

if TYPE_CHECKING:
    from fold.inspection import Inspection
    from fold.sources import Source


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A source as for fold, or REPOSITORY/NAME, or REPOSITORY/NAME/VERSION; of these also a URL.",
        ),
    ],
    arch: Arch = None,
    arch_arg: ArchArg = None,
    inputs: Inputs = None,
    batch: Batch = None,
    key: Key = None,
    ema: Ema = False,
    open_activations: Annotated[
        bool, typer.Option("--open-activations", help="Show where BatchNorms would be folded with opened activations.")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings as an HTML page.")] = None,
    overridable: Overridable = False,
    trust: Trust = False,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Show what each BatchNorm of SOURCE is, whether it is healthy, and where it would be folded. This is no proof."""
    refuse_missing(source)
    from fold.artifact import published_version  # noqa: PLC0415
    from fold.inspection import inspect_graph  # noqa: PLC0415
    from fold.remote import local, named  # noqa: PLC0415
    from fold.reports import check_inspection_page, write_inspection_page  # noqa: PLC0415
    from fold.sources import Source, read_source  # noqa: PLC0415

    # 1. Check the options.
    shown = named(source)
    if html is not None:
        check_inspection_page(html)
    # 2. Read the source, and fold it to see where each BatchNorm would go.
    with StepBar() as bar, local(source) as path:
        bar.announce(f"reading {shown}")
        if (version := published_version(path)) is not None:
            if arch or arch_arg or inputs or batch or key or ema or trust or overridable:
                raise BnfoldError(
                    f"{shown}: is a published model; --arch, --input and such are for files, leave them out"
                )
            given = _reference(version)
        else:
            given = Source(path, arch, arch_arg or (), inputs or (), trust, key, ema, None, batch, overridable, "load")
        unfolded = read_source(given, bar.announce)
        bar.announce("folding")
        inspection = inspect_graph(
            unfolded.model,
            unfolded.batches_seen,
            moving_average="recalibrated" not in unfolded.metadata,
            open_activations=open_activations,
        )
    # 3. Print what was converted while the source was read, then the findings.
    changes = tuple(unfolded.described.get("changes", ()))
    print_changes(shown, changes, arch, unfolded.arch_file)
    if as_json:
        print_json({"source": shown, "changes": list(changes), **inspection.to_dict()})
    else:
        advice = "" if inspection.batchnorms else unfolded.keep_batchnorm or ""
        _print_findings(shown, inspection, everything=everything, advice=advice)
    # 4. Write the page.
    if html is not None:
        write_inspection_page(html, inspection, Path(source).name)
        console.print(f"written to {escape(str(html))}", soft_wrap=True, highlight=False)


def _print_findings(source: str, inspection: "Inspection", *, everything: bool, advice: str) -> None:
    from fold.reports import (  # noqa: PLC0415
        affines_line,
        folding_listing,
        inspection_summary,
        inspection_table,
        kept_lines,
        ranges,
        statistics_listing,
        suspicion_lines,
    )

    for line in suspicion_lines(inspection, everything=everything):
        console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)
    if everything and inspection.batchnorms:
        for listing in (statistics_listing(inspection), folding_listing(inspection)):
            console.print()
            console.print(inspection_table(listing, console.width))
        console.print()
    elif inspection.batchnorms:
        for line in kept_lines([(one.name, one.why) for one in inspection.batchnorms if one.why is not None]):
            console.print(line, soft_wrap=True, highlight=False)
        console.print(f"all channels: {ranges(inspection)}", soft_wrap=True, highlight=False)
    hint = ". --all lists each of them." if inspection.batchnorms and not everything else ""
    if inspection.affines:
        console.print(affines_line(inspection.affines), soft_wrap=True, highlight=False)
    text = f"{source}: {inspection_summary(inspection)}{f'; {advice}' if advice else hint}"
    console.print(escape(text), soft_wrap=True, highlight=False)


def _reference(folder: Path) -> "Source":
    """The reference of a published version, which ran in ONNX Runtime when it was published."""
    from fold.artifact import read_version  # noqa: PLC0415
    from fold.sources import Source  # noqa: PLC0415

    version = read_version(folder)
    return Source(version.reference_file, overridable=bool(version.manifest.source.get("overridable")), trial=None)
