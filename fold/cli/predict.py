"""`bnfold predict`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fold.cli.bar import bar_of
from fold.cli.options import PROOF_FAILED, AsJson, Device, ModelDir, complain, console, print_json
from fold.errors import BnfoldError
from fold.terminal import escape


def predict(
    model_dir: ModelDir,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="Files (.parquet, .npz, .npy, images), folders of them, and glob patterns."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the answers; a run that stopped goes on there.")],
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="The column of an input, if it has another name. May be repeated."),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="A column that is written beside the answers.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Write the K best classes.", show_default="1 for a model with labels"),
    ] = None,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Write whole outputs, as of a model without labels.")
    ] = False,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Rows of one file, which is written whole or not at all.")
    ] = 10_000,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be predicted.")] = False,
    verify: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Share of the rows to compare with the reference.")
    ] = 0.0,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Compute shards in this process, or on a Ray cluster.")
    ] = "local",
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads inside one operator, 0 chooses.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Predict every row of a data set with a published model, each once, and write the answers as Parquet files."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    for package, extra in (("pyarrow", "predict"), *([("ray", "ray")] if engine == "ray" else [])):
        if find_spec(package) is None:
            raise BnfoldError(f"{package} is not installed; install bnfold[{extra}]")
    from fold.prediction import Choices, RowError, load, predict_files  # noqa: PLC0415
    from fold.remote import named  # noqa: PLC0415

    # 1. Load the model as the service does.
    choices = Choices(_columns(column or ()), id_column, top_k, outputs, shard_rows, strict, verify)
    bar = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with bar_of(*bar) as shown:
        task = shown.add_task(f"loading {escape(named(model_dir))}", total=None, rate="")
        model = load(model_dir, device=device, threads=threads)
        # 2. Predict what is not there yet.
        shown.update(task, description=escape(str(model)))

        def progress(done: int, rows: int) -> None:
            speed = shown.tasks[0].speed
            rate = f"{done:,} of {rows:,} rows" + (f", {speed:,.0f} rows/s" if speed else "")
            shown.update(task, completed=done, total=rows, rate=rate)

        try:
            found = predict_files(model, data, out, choices, engine=engine, progress=progress)
        except RowError as error:
            raise typer.Exit(complain(str(error), PROOF_FAILED)) from error
    # 3. Say what was done. The exit code says whether all of it holds.
    if as_json:
        print_json(found.to_dict())
    console.print(escape(found.message), soft_wrap=True, highlight=False)
    if not found:
        raise typer.Exit(PROOF_FAILED)


def _columns(written: Sequence[str]) -> dict[str, str]:
    """`x=pixels` as columns by input. Raises `BnfoldError`."""
    columns: dict[str, str] = {}
    for text in written:
        name, equals, column = text.partition("=")
        if not (name and equals and column) or name in columns:
            raise BnfoldError(f"--column {text}: expected INPUT=COLUMN, each input once")
        columns[name] = column
    return columns
