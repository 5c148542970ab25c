"""`bnfold compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fold.cli.bar import StepBar
from fold.cli.options import (
    PROOF_FAILED,
    All,
    Arch,
    ArchArg,
    AsJson,
    Batch,
    Ema,
    Inputs,
    Key,
    Samples,
    Seed,
    Trust,
    console,
    print_json,
    refuse_missing,
)
from fold.terminal import escape

MODEL = "A checkpoint, .pt2, .onnx, or a model directory or its URL, whose served graph is taken."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The model that is right. {MODEL}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to judge; as A.")],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz|FOLDER", help="Arrays by A's input names, or a folder of such files."),
    ] = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    shapes: Inputs = None,
    batch: Batch = None,
    key: Key = None,
    ema: Ema = False,
    trust: Trust = False,
    samples: Samples = 16,
    seed: Seed = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw how far the models are apart at each layer.")
    ] = None,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models of any tool: whether they compute the same, and the first layer where they part."""
    for path in (a, b):
        refuse_missing(path)
    from fold.artifact import published_version  # noqa: PLC0415
    from fold.comparison import compare as compare_models  # noqa: PLC0415
    from fold.inputs import read_inputs  # noqa: PLC0415
    from fold.remote import local  # noqa: PLC0415
    from fold.reports import check_picture, comparison_table, write_comparison_picture  # noqa: PLC0415
    from fold.sources import Source  # noqa: PLC0415

    if picture is not None:
        check_picture(picture)

    with StepBar() as bar, local(a) as path_a, local(b) as path_b:
        # 1. Options of checkpoints go to the models that are checkpoints; if neither is one, reading A refuses them.
        given = [path for path in (path_a, path_b) if published_version(path) is None]
        checkpoints = [path for path in given if path.suffix not in (".onnx", ".pt2")]
        unsafe = [path for path in given if path.suffix not in (".onnx", ".safetensors")]

        def source(path: Path) -> Source:
            loaded, opened = path in (checkpoints or [path_a]), path in (unsafe or [path_a])
            return Source(
                path,
                arch=arch if loaded else None,
                arch_args=tuple(arch_arg or ()) if loaded else (),
                inputs=tuple(shapes or ()),
                trust=trust and opened,
                key=key if loaded else None,
                ema=ema and loaded,
                batch=batch,
            )

        # 2. Compare.
        found = compare_models(
            source(path_a),
            source(path_b),
            None if inputs is None else read_inputs(inputs),
            samples=samples,
            seed=seed,
            layers=picture is not None,
            announce=bar.announce,
        )

    # 3. Print the verdict. The exit code says whether the models are the same.
    if as_json:
        print_json(found.to_dict())
    else:
        for note in found.notes:
            console.print(escape(note), soft_wrap=True, highlight=False)
        console.print(comparison_table(found, every_output=everything))
    if picture is not None:
        write_comparison_picture(picture, found)
    colour = "green" if found else "red"
    console.print(f"[{colour}]{escape(found.message)}[/]", soft_wrap=True, highlight=False)
    if not found:
        raise typer.Exit(PROOF_FAILED)
