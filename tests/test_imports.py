"""The walls of the house (docs/design.md): who may import whom, and what serving never loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

TORCH_ALLOWED = {
    "fold/sources/checkpoint/architecture.py",
    "fold/sources/archive/load.py",
    "fold/sources/checkpoint/checkpoint.py",
    "fold/sources/checkpoint/fit.py",
    "fold/sources/inferred.py",
    "fold/sources/tracing.py",
    "fold/sources/outputs.py",
    "fold/sources/checkpoint/mismatch.py",
    "fold/sources/scale_program.py",
    "fold/sources/checkpoint/plain.py",
    "fold/sources/archive/scan.py",
    "fold/sources/checkpoint/torchfile.py",
    "fold/sources/checkpoint/wrappers.py",
    "fold/sources/shapes.py",
    "fold/sources/export.py",
    "fold/recalibration/population.py",
    "fold/recalibration/recalibrate.py",
    "fold/evaluate/autograd.py",
    "fold/proof/reference.py",  # inside the class that runs a PyTorch reference
    "fold/proof/search.py",  # when a search begins
    "fold/evaluate/autograd_windows.py",
    "fold/evaluate/program.py",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "models").rglob("*.py")),
}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Names of the modules that a file imports; those under `if TYPE_CHECKING` are not run."""
    tree = ast.parse(path.read_text())
    nodes = list(tree.body if top_level else ast.walk(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hidden = {id(inner) for inner in ast.walk(node)}
            nodes = [inner for inner in nodes if id(inner) not in hidden]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", sorted((ROOT / "fold").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_fold_never_imports_service_or_models(path) -> None:
    assert "models" not in packages(imports(path))
    if path == ROOT / "fold/cli/serve.py":  # `bnfold serve` starts it, when it is called
        assert "service" not in packages(imports(path, top_level=True))
    else:
        assert "service" not in packages(imports(path))


@pytest.mark.parametrize("path", sorted((ROOT / "service").rglob("*.py")), ids=lambda path: path.name)
def test_service_imports_neither_models_nor_what_makes_graphs(path) -> None:
    assert packages(imports(path)) & {"models", "torch", "onnx", "onnx_ir", "onnxscript"} == set()


@pytest.mark.parametrize("folder", ["fold", "service", "models"])
def test_torch_is_imported_only_where_a_module_is_at_hand(folder) -> None:
    users = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py") if "torch" in packages(imports(p))}
    assert users <= TORCH_ALLOWED
    lazily = {path for path in users if "torch" not in packages(imports(ROOT / path, top_level=True))}
    assert not {"fold/proof/reference.py", "fold/proof/search.py"} & (users - lazily)


def test_the_service_and_the_command_line_start_without_torch_and_onnx() -> None:
    code = "import sys, fold, fold.cli, service.app; print(sorted({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_public_functions_are_where_users_look() -> None:
    code = "import fold; print([callable(getattr(fold, name)) for name in fold.__all__])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "False" not in done.stdout
