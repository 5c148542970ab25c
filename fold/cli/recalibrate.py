"""`bnfold recalibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fold.cli.bar import bar_of
from fold.cli.options import Arch, ArchArg, AsJson, Ema, Key, Trust, console, print_changes, print_json, refuse_missing
from fold.terminal import escape

if TYPE_CHECKING:
    from rich.table import Table

    from fold.recalibration import Recalibration


def recalibrate(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A state_dict (.pt, .pth, .ckpt, .bin, .safetensors).")
    ],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE.npz|FOLDER", help="Arrays by input name, or a folder of such files or images."),
    ],
    out: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="The new checkpoint. This file must not exist yet.")],
    arch: Arch = None,
    arch_arg: ArchArg = None,
    key: Key = None,
    ema: Ema = False,
    layer_by_layer: Annotated[
        bool,
        typer.Option("--layer-by-layer", help="One pass over the data for each BatchNorm: exact for any batch size."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="The largest number of rows in one batch.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the rows.")] = 0,
    preprocessing: Annotated[
        Path | None, typer.Option(help="How images become inputs (JSON, docs/formats.md).")
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Recompute BatchNorm's statistics over a data set, and write a new checkpoint with them.

    This changes what the model computes.
    """
    refuse_missing(source)
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    from fold.recalibration import recalibrate as compute  # noqa: PLC0415
    from fold.sources import Source  # noqa: PLC0415

    # 1. Compute the statistics and write the checkpoint.
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with bar_of(*columns) as shown:
        task = shown.add_task("reading", total=None)
        done = compute(
            Source(source, arch, arch_arg or (), trust=trust, key=key, ema=ema),
            data,
            out,
            batch_size=batch_size,
            seed=seed,
            layer_by_layer=layer_by_layer,
            preprocessing=preprocessing,
            progress=lambda step, steps, layer: shown.update(
                task, completed=step, total=steps, description=escape(layer)
            ),
        )
    # 2. Print what was inferred while the source was read, and how far each layer moved.
    print_changes(source, done.notes, arch, done.arch_file)
    if as_json:
        print_json(done.to_dict())
    else:
        console.print(_table(done))
    for name in done.unreached:
        text = f"{escape(name)}: a forward pass in eval mode does not reach it; its statistics stay as they were"
        console.print(f"[yellow]{text}[/]", soft_wrap=True, highlight=False)
    # 3. Print how far the outputs moved, and where the checkpoint is.
    record = done.recalibrated
    console.print(
        f"\n{len(done.layers)} BatchNorms over {record['samples']} samples in {record['batches']} batches, "
        f"{record['mode']}, {done.seconds:.1f} s. The outputs of the first batch moved by "
        f"{_number(done.outputs_moved)} of the largest old output.",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        "[yellow]This changes what the model computes: evaluate the new checkpoint, then fold and verify it.[/]",
        soft_wrap=True,
    )
    console.print(f"written to {escape(str(done.checkpoint))}", soft_wrap=True, highlight=False)


def _table(done: "Recalibration") -> "Table":
    """A row for each layer, in the order of a forward pass."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("BatchNorm", "Channels", "Values", "Mean moved (old σ)", "New/old variance"):
        table.add_column(column, justify="left" if column == "BatchNorm" else "right")
    for layer in done.layers:
        ratio = "?" if layer.variance_ratio is None else " to ".join(map(_number, layer.variance_ratio))
        table.add_row(escape(layer.name), str(layer.channels), str(layer.values), _number(layer.mean_shift), ratio)
    return table


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
