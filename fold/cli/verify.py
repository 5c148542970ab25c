"""`bnfold verify`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fold.cli.bar import StepBar
from fold.cli.options import PROOF_FAILED, All, AsJson, Device, ModelDir, Samples, Seed, console, print_json
from fold.errors import BnfoldError
from fold.terminal import escape


def verify(
    model_dir: ModelDir,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz|FOLDER", help="Arrays by input name, or a folder of such files or images."),
    ] = None,
    samples: Samples = 16,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"] | None, typer.Option(help="The precision that the model must have.")
    ] = None,
    search: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Search for the largest difference for this long.")
    ] = 0,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Prove a published model again on this machine, from its directory alone."""
    from fold.remote import named, open_version  # noqa: PLC0415

    # 1. Read the model directory, and check its precision. The imports take a second.
    with StepBar() as bar:
        bar.announce(f"reading {named(model_dir)}")
        version = open_version(model_dir)
        from fold.inputs import read_inputs  # noqa: PLC0415
        from fold.proof import certify  # noqa: PLC0415
        from fold.reports import certificate_table  # noqa: PLC0415

        if precision not in (None, version.manifest.precision):
            raise BnfoldError(
                f"{version.model_file}: is in {version.manifest.precision}, not in {precision}; "
                f"fold the model again with --precision {precision}"
            )
        # 2. Certify it.
        certificate = certify(
            version,
            None if inputs is None else read_inputs(inputs, version.manifest),
            samples=samples,
            seed=seed,
            provider=device,
            search_seconds=search,
            announce=bar.announce,
            progress=lambda step, steps, found: bar.advance(step, steps, f"searching: {found:.3g} found"),
        )
    # 3. Print the certificate. The exit code says whether it holds.
    if as_json:
        print_json({"model": version.manifest.name, "version": version.manifest.version, **certificate.to_dict()})
    else:
        console.print(certificate_table(certificate, every_output=everything))
    colour = "green" if certificate else "red"
    console.print(f"[{colour}]{escape(certificate.message)}[/]", soft_wrap=True, highlight=False)
    if not certificate:
        raise typer.Exit(PROOF_FAILED)
