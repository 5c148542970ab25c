"""The README's examples of other frameworks, with these and not with stand-ins."""

# ruff: noqa: I001  # the schemas come before whatever imports torchvision
from frameworks import torchvision_schemas  # noqa: F401

import pytest

from support.commands import examples, run_lines

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "hf-resnet"])
def test_the_readmes_example(tmp_path, name) -> None:
    """As it stands there. Its last lines fold the checkpoint that the first line writes, and prove it."""
    (text,) = [text for _, text in examples() if f"bnfold fold {name}" in text]
    assert f"published repository/{name}/1" in run_lines(text, tmp_path)
