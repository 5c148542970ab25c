"""Scans a `torch.export` archive, so that opening and running it runs only PyTorch's own operators.

`torch.export.load` unpickles some entries, looks operators up by the names in the file, evaluates its expressions with
sympy, imports modules that a tree of inputs names, and writes names and guards into Python source that it executes. So
each string of the program is compared with what PyTorch itself writes in its place. Anything else is refused.
"""

import ast
import json
import keyword
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from fold.errors import BnfoldError, first_line

MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
ENTRIES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|\.format_version|"
    r"\.storage_alignment|version|\.data/(version|serialization_id)|extra/[^/]+"
)
TREE_TYPES = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
)
"""Other types make PyTorch import modules or call factories."""
OPERATOR_FUNCTIONS = re.compile(
    "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|lshift|rshift"
)
MATH_FUNCTIONS = re.compile("ceil|floor|trunc|sqrt|log|log2|exp|pow|sin|cos|tan|fabs")
SYM_FUNCTIONS = re.compile("sym_(int|float|max|min|not|ite|sum|sqrt)|_sym_sqrt")
HIGHER_ORDER = ("cond", "map_impl", "scan", "while_loop", "wrap_with_set_grad_enabled", "wrap_with_autocast")
CALLS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilDiv|RShift|"
    "(Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|RoundDecimal|ToFloat|FloatTrueDiv|IntTrueDiv|Identity|Max|Min|Abs|"
    "Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|floor|"
    "ceiling|IsNonOverlappingAndDenseIndicator"
)
"""Functions in expressions of sizes, from sympy and from PyTorch."""
GROWING = ("Pow", "PowByNatural", "FloatPow", "LShift")
"""Their second argument must be small, because nested powers take forever to evaluate."""
ASSUMPTIONS = ("integer", "positive", "nonnegative", "real", "precision")
GUARDED = re.compile(
    "size|stride|storage_offset|dim|FloorDiv|Mod|PythonMod|max|min|abs|floor|ceil|trunc|sym_max|sym_min"
)
CONSTANTS = frozenset({"oo", "int_oo", "nan", "true", "false", "True", "False"})
SYMBOL = re.compile(r"[a-z]{1,4}\d+")
ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)
QUIET_TEXT = re.compile(r"[^\"'`\\;#\x00-\x1f\x7f\u0085\u2028\u2029]*")
"""A layer name or a text argument without characters that end a string or a line in Python."""
LONGEST_EXPRESSION = 20_000


class _Refusal(Exception):  # noqa: N818
    """The reason for a refusal, part of one line."""


def scan(path: Path) -> None:
    """Raise `BnfoldError` for an archive that would be unpickled in part, or that names code.

    PyTorch's own reader reads it, as when it is opened. So a file that two readers read differently cannot hide code.
    """
    try:
        with opened(path) as stream, PT2ArchiveReader(stream) as archive:
            _check_entries(archive)
            _check_program(json.loads(archive.read_bytes(MODEL)))
    except BnfoldError:
        raise
    except _Refusal as refusal:
        raise BnfoldError(f"{path}: {refusal}; or pass --trust if you know where the file comes from") from refusal
    except Exception as error:  # a foreign or damaged archive makes the reader raise many types
        raise BnfoldError(
            f"{path}: is not a torch.export archive ({first_line(error)}); write one with torch.export.save of PyTorch "
            "2.8 or later"
        ) from error


def opened(path: Path) -> BinaryIO:
    """The opened file. Raises `BnfoldError`, so that errors of the reader are about the content."""
    try:
        return path.open("rb")
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _check_entries(archive: Any) -> None:
    names = archive.get_file_names()
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise _Refusal(f"holds {name} twice; write it again with torch.export.save")
        if name in CONFIGS:
            _check_config(json.loads(archive.read_bytes(name)))
        elif name == SAMPLES:
            if archive.read_bytes(name):
                raise _Refusal(
                    f"its sample inputs ({name}) would be unpickled, which can run code; save it without them: "
                    "program.example_inputs = None before torch.export.save(program, FILE)"
                )
        elif name != MODEL and not ENTRIES.fullmatch(name):
            raise _Refusal(f"{name} would be unpickled or run, which can run code; write it again without")


def _check_config(config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False:
            raise _Refusal(f"{name!r} would be unpickled, which can run code; write it again as a plain tensor")
        if not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise _Refusal(f"{name!r} is not a tensor, and would be unpickled; write it again as a plain tensor")
        _check_text("a name", name)


def _check_program(program: Any) -> None:
    for guard in program.get("guards_code") or ():
        _check_guard(guard)
    for size in program["range_constraints"]:
        _check_expression(size)
    for key, value in _strings({name: value for name, value in program.items() if name != "guards_code"}):
        _check_string(key, value)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of the program with its key. A mapping's own keys are given the key `key`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if key != "range_constraints":
                yield "key", name
            if name == "metadata" and _is_provenance(value, inner):
                continue
            if name in ("as_custom_obj", "custom_obj", "as_custom_objs", "custom_obj_values") and inner:
                raise _foreign("an object", name)
            yield from _strings(inner, name)


def _is_provenance(owner: dict[str, Any], value: Any) -> bool:
    """Whether this is a node's origin: layer names and source lines, which are not executed. A tensor named `metadata`
    holds more than strings."""
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return texts and ("target" in owner or "graph" in owner)


def _check_string(key: str, text: str) -> None:
    if key in ("target", "as_operator"):
        if not _is_known_operator(text):
            raise _foreign("an operator", text)
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(text), names=key == "in_spec")
    elif key in ("name", "as_name", "forward_arg_names"):
        if text and (not text.isidentifier() or keyword.iskeyword(text)):
            raise _foreign("a name", text)
    else:
        _check_text("a word", text)


def _is_known_operator(name: str) -> bool:
    module, _, rest = name.partition(".")
    if module == "_operator":
        return OPERATOR_FUNCTIONS.fullmatch(rest) is not None
    if module == "math":
        return MATH_FUNCTIONS.fullmatch(rest) is not None
    if name.startswith("torch.ops.higher_order."):
        return name.removeprefix("torch.ops.higher_order.") in HIGHER_ORDER
    parts = re.fullmatch(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)", name)
    if parts is None:
        return module == "torch" and SYM_FUNCTIONS.fullmatch(rest) is not None
    return _computes(*parts.groups())


def _computes(namespace: str, operator: str, overload: str) -> bool:
    """Whether it is an operator on tensors. One of the operators for TorchScript writes files."""
    try:
        target = getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    except AttributeError:
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return False
    registered = torch._C._dispatch_has_kernel(f"{namespace}::{operator}" + f".{overload}" * (overload != "default"))
    return bool(registered) and not any("file" in argument.name for argument in target._schema.arguments)


def _check_expression(text: str) -> None:
    """Refuse an expression that is not arithmetic of symbols, numbers and functions of sizes; sympy evaluates it."""
    for node in _parsed(text):
        if isinstance(node, ast.Name):
            word = node.id
            fine = word in CONSTANTS or word in GROWING or bool(CALLS.fullmatch(word) or SYMBOL.fullmatch(word))
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and (node.func.id not in GROWING or _is_small(node.args[1]))
        elif isinstance(node, ast.keyword):
            fine = node.arg in ASSUMPTIONS and isinstance(node.value, ast.Constant)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = bool(SYMBOL.fullmatch(node.value) or re.fullmatch(r"-?[0-9.]+(e[+-]?\d{1,3})?", node.value))
        else:
            fine = _is_arithmetic(node)
        if not fine:
            raise _foreign("an expression", text)


def _check_guard(text: str) -> None:
    """Refuse a guard unlike PyTorch's guards of sizes, `L['x'].size()[2] % 2 == 0`; it becomes Python source."""
    for node in _parsed(text):
        if isinstance(node, ast.Name):
            fine = node.id in ("L", "math", "torch") or GUARDED.fullmatch(node.id) is not None
        elif isinstance(node, ast.Attribute):
            fine = GUARDED.fullmatch(node.attr) is not None
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name | ast.Attribute) and not node.keywords
        elif isinstance(node, ast.Subscript):
            fine = isinstance(node.slice, ast.Constant)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = QUIET_TEXT.fullmatch(node.value) is not None
        else:
            fine = _is_arithmetic(node)
        if not fine:
            raise _foreign("a guard", text)


def _parsed(text: str) -> Iterator[ast.AST]:
    if len(text) > LONGEST_EXPRESSION or re.search(r"[#;\\\x00-\x1f]", text):
        raise _foreign("an expression", text)
    try:
        return ast.walk(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _foreign("an expression", text) from error


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    return isinstance(node, ARITHMETIC)


def _is_small(node: ast.expr) -> bool:
    """Whether it is a number up to 64, also negated or as sympy's Integer."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= 64


def _check_tree(spec: Any, *, names: bool) -> None:
    """Check the nesting of inputs or outputs: a list of a version and the tree."""
    for tree in spec[1:]:
        _check_subtree(tree, names=names)


def _check_subtree(tree: Any, *, names: bool) -> None:
    if tree["type"] not in TREE_TYPES:
        raise _foreign("a container", tree["type"])
    context = json.loads(tree["context"]) if tree["context"] else None
    if context is not None:
        if not isinstance(context, list) or not all(isinstance(key, str | int) for key in context):
            raise _foreign("a container", tree["context"])
        for key in context:
            if names and not str(key).isidentifier():
                raise _foreign("a name", str(key))
            _check_text("a name", str(key))
    for child in tree["children_spec"]:
        _check_subtree(child, names=names)


def _check_text(what: str, text: str) -> None:
    if not QUIET_TEXT.fullmatch(text):
        raise _foreign(what, text)


def _foreign(what: str, text: object) -> _Refusal:
    shown = str(text) if len(str(text)) <= 80 else f"{str(text)[:80]}…"
    return _Refusal(
        f"names {what} that bnfold does not know, {shown!r}, and opening it could run code; export it again"
    )
