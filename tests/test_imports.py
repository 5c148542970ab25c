"""What is loaded when, which a linter cannot see. Who may import whom is in pyproject.toml (import-linter)."""

import ast
import subprocess
import sys

from support import ROOT


def test_the_service_and_the_command_line_start_without_what_few_need() -> None:
    unwanted = {"torch", "onnx", "onnx_ir", "pyarrow", "ray", "fsspec"}
    code = f"import sys, fold, fold.cli, service.app; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_command_line_sets_threads_before_numpy_is_there() -> None:
    code = "import sys, fold.cli; print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_missing_file_is_refused_before_anything_is_imported_that_reads_it() -> None:
    code = (
        "import contextlib, sys; from fold.cli import main\n"
        "files = ('fold x.pt --out r', 'inspect x.pt', 'recalibrate x.pt --data x.npz --out y.pt')\n"
        "for words in (*files, 'verify r/x', 'bench r/x'):\n"
        "    with contextlib.suppress(SystemExit): main(words.split())\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.count("bnfold: x.pt: no such file") == 3
    assert done.stderr.count("bnfold: r/x: no such folder") == 2
    assert done.stdout.strip() == "[]"


def test_the_public_functions_are_where_users_look() -> None:
    code = "import fold; print([callable(getattr(fold, name)) for name in fold.__all__])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "False" not in done.stdout


def test_every_name_of_a_face_is_there() -> None:
    """A lazy face names the module of each of its names; a linter does not follow that."""
    code = (
        "import importlib; faces = 'evaluate', 'prediction', 'proof', 'runtime', 'serving', 'sources'\n"
        "for face in map(importlib.import_module, (f'fold.{name}' for name in faces)):\n"
        "    print([getattr(face, name) for name in face.__all__] != [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True"] * 6


def test_benchmarks_find_what_they_import_from_the_checkout() -> None:
    """A benchmark runs without pytest, which alone knows that `support` is in tests/."""
    waiting, seen = sorted((ROOT / "benchmarks").rglob("*.py")), set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        for name in (node.module for node in imports if node.module and not node.level):
            assert name.partition(".")[0] != "support", file
            inner = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("tests.") and inner.exists() and inner not in seen:
                waiting.append(inner)
    assert ROOT / "tests/support/folding.py" in seen
