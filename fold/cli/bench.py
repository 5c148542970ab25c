"""`bnfold bench`."""

from pathlib import Path
from typing import Annotated

import typer

from fold.cli.bar import StepBar
from fold.cli.options import DEVICES, PROOF_FAILED, AsJson, ModelDir, Seed, complain, console, print_json
from fold.terminal import escape


def bench(
    model_dir: ModelDir,
    batch: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Batch sizes to measure.", show_default="1,8,32")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How many times each graph is timed.")] = 50,
    device: Annotated[
        str, typer.Option(metavar=DEVICES, help="Where to measure; auto measures on every available device.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads inside one operator, 0 for all cores.")] = 0,
    seed: Seed = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the latencies as bars.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the latency of a published model, unfolded and folded. The answers of both are checked first."""
    from fold.remote import open_version  # noqa: PLC0415

    version = open_version(model_dir)  # at first, because the other imports take a second
    from fold.bench import AnswersDifferError, bench_version, parse_batches  # noqa: PLC0415
    from fold.reports import bench_table, captions, check_picture, write_picture  # noqa: PLC0415

    batches = None if batch is None else parse_batches(batch)
    if picture is not None:
        check_picture(picture)
    try:
        with StepBar(refreshes_per_second=1) as bar:  # more would take CPU time from the measurement
            benchmark = bench_version(
                version,
                batches=batches,
                rounds=rounds,
                provider=device,
                threads=threads,
                seed=seed,
                announce=bar.announce,
            )
    except AnswersDifferError as error:
        raise typer.Exit(complain(str(error), PROOF_FAILED)) from error
    if as_json:
        print_json(benchmark.to_dict())
    else:
        console.print(f"[bold]{escape(benchmark.model)}[/] version {benchmark.version}", highlight=False)
        for line in captions(benchmark):
            console.print(escape(line), soft_wrap=True, highlight=False)
        console.print()
        console.print(bench_table(benchmark))
        console.print(f"\n{escape(benchmark.conclusion)}", soft_wrap=True, highlight=False)
    if picture is not None:
        write_picture(picture, benchmark)
        console.print(f"written to {escape(str(picture))}", soft_wrap=True, highlight=False)
