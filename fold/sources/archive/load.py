"""Reads `torch.export` archives (`.pt2`). They are scanned before they are opened."""

from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from fold.errors import BnfoldError, first_line
from fold.sources.archive.scan import opened, scan
from fold.sources.checkpoint.limits import refuse_inflated
from fold.sources.checkpoint.wrappers import refuse_unusual
from fold.sources.quiet import silenced


def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """Open a `torch.export` archive. Without `trust`, one that could run code is refused."""
    refuse_inflated(path)
    if not trust:
        scan(path)
    try:
        with silenced(), opened(path) as stream:
            # torch.export.load falls back to a reader of older archives, which scan() does not see.
            program = torch.export.load(stream) if trust else load_pt2(stream).exported_programs["model"]
        tensors = {**program.state_dict, **program.constants}
        refuse_unusual(path, {name: one for name, one in tensors.items() if isinstance(one, torch.Tensor)})
        return program
    except BnfoldError:
        raise
    except Exception as error:  # torch.export raises many types for a damaged archive
        raise BnfoldError(
            f"{path}: is not a torch.export archive that this PyTorch can read: {first_line(error)}"
        ) from error
