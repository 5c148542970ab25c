"""`.pt2` archives: opened where nothing in them can run code, refused where it could, before anything ran.

Each malicious archive is a real one with one thing changed, and would write a file were it opened.
"""

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from fold.errors import BnfoldError
from fold.sources.archive.load import load_program
from fold.sources.archive.scan import scan
from fold.sources.export import export_program, save_program
from fold.sources.quiet import silenced
from fold.sources.source import Source, read_source
from support.commands import bnfold, refused
from support.loadable import Halving, plain

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """With free sizes, so that there are expressions, guards and ranges in it."""
    path = tmp_path_factory.mktemp("archive") / "m.pt2"
    half = Dim("half", min=2)
    with silenced():
        program = torch.export.export(
            Halving().eval(), (torch.randn(3, 3, 32, 48),), dynamic_shapes=({0: Dim("batch"), 2: 2 * half},)
        )
    save_program(program, path)
    return path


def changed(
    archive: Path, path: Path, name: str, change: Callable[[bytes], bytes] | None = None, **added: bytes
) -> Path:
    """A copy in which the entry `name` is changed, and others are added."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            own = entry.filename.partition("/")[2]
            target.writestr(entry.filename, change(content) if change is not None and own == name else content)
        root = source.namelist()[0].partition("/")[0]
        for added_name, content in added.items():
            target.writestr(f"{root}/{added_name}", content)
    return path


def edited(edit: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        program = json.loads(content)
        edit(program)
        return json.dumps(program).encode()

    return change


def nodes(program: dict) -> list[dict]:
    return program["graph_module"]["graph"]["nodes"]


def test_our_own_archive_is_opened_without_trust(tmp_path, archive) -> None:
    program = load_program(archive)
    module = Halving().eval()
    module.load_state_dict(program.state_dict)
    x = torch.randn(5, 3, 10, 48)
    with torch.no_grad():
        assert torch.equal(program.module()(x), module(x))
    save_program(export_program(plain().eval(), torch.randn(2, 3, 8, 9)), tmp_path / "n.pt2")
    scan(tmp_path / "n.pt2")
    copy = changed(archive, tmp_path / "same.pt2", MODEL, lambda content: content)
    scan(copy)  # what the tests below write is refused for what they change


def test_sample_inputs_are_refused_unless_trusted_with_the_way_to_leave_them_out(tmp_path) -> None:
    with silenced():
        program = torch.export.export(plain().eval(), (torch.randn(2, 3, 8, 9),))
        torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(BnfoldError, match=r"sample inputs.*program\.example_inputs = None.*--trust"):
        load_program(tmp_path / "m.pt2")
    with pytest.raises(BnfoldError, match="--trust"):
        read_source(Source(tmp_path / "m.pt2"))
    assert load_program(tmp_path / "m.pt2", trust=True)
    with silenced():
        program.example_inputs = None
        torch.export.save(program, tmp_path / "n.pt2")
    model = read_source(Source(tmp_path / "n.pt2")).model
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == 2


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02}q\x00."]
)  # fmt: skip
def test_a_foreign_file(tmp_path, content) -> None:
    (tmp_path / "n.pt2").write_bytes(content)
    for trust in (False, True):
        with pytest.raises(BnfoldError, match=r"n\.pt2: is not a torch\.export archive") as caught:
            load_program(tmp_path / "n.pt2", trust=trust)
        assert "\n" not in str(caught.value)
    with pytest.raises(BnfoldError, match="cannot be read"):
        load_program(tmp_path / "nowhere.pt2")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_archive(tmp_path, archive, share) -> None:
    content = archive.read_bytes()
    (tmp_path / "n.pt2").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BnfoldError, match=r"is not a torch\.export archive"):
        load_program(tmp_path / "n.pt2")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "entry",
    [
        "data/weights/model.pt",  # of archives from before PyTorch 2.8
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/model.so",
        "data/sample_inputs/other.pt",
        "models/other.json",
        "serialized_state_dict.pt",
        "Models/model.json",
        "data/weights/../../code.pkl",
    ],
)
def test_entries_that_would_be_unpickled_or_run(tmp_path, archive, entry) -> None:
    written = tmp_path / "written"
    torch.save(Malicious(written), tmp_path / "bad.pt")
    bad = changed(archive, tmp_path / "n.pt2", MODEL, None, **{entry: (tmp_path / "bad.pt").read_bytes()})
    with pytest.raises(BnfoldError, match=r"n\.pt2: .*--trust"):
        load_program(bad)
    assert not written.exists()


def test_a_weight_that_would_be_unpickled(tmp_path, archive) -> None:
    written = tmp_path / "written"
    torch.save(Malicious(written), tmp_path / "bad.pt")

    def pickled(config: dict) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    bad = changed(archive, tmp_path / "n.pt2", WEIGHTS, edited(pickled))
    bad = changed(bad, tmp_path / "o.pt2", "data/weights/weight_0", lambda content: (tmp_path / "bad.pt").read_bytes())
    with pytest.raises(BnfoldError, match=r"o\.pt2: '.*' would be unpickled"):
        load_program(bad)
    assert not written.exists()
    with contextlib.suppress(BnfoldError):  # the archive does what it is meant to, where it is trusted
        load_program(bad, trust=True)
    assert written.exists()


def test_a_guard_would_become_python_source(tmp_path, archive) -> None:
    """PyTorch executes guards when a module is made of a program, if it has sample inputs."""
    written = tmp_path / "written"

    def guard(program: dict) -> None:
        program["guards_code"] = [f"__import__('pathlib').Path({str(written)!r}).touch() is None"]

    bad = changed(archive, tmp_path / "n.pt2", MODEL, edited(guard))
    with pytest.raises(BnfoldError, match="names a guard that bnfold does not know"):
        load_program(bad)
    program = load_program(bad, trust=True)
    x = torch.randn(2, 3, 8, 48)
    program._example_inputs = ((x,), {})
    assert not written.exists()
    program.module()(x)
    assert written.exists()


def test_an_expression_would_be_evaluated(tmp_path, archive) -> None:
    """sympy evaluates the expressions of sizes as Python."""
    written = tmp_path / "written"
    code = f"__import__('os').system('touch {written}') or Symbol('s77')"

    def change(content: bytes) -> bytes:
        text, count = re.subn(r'"expr_str": "[^"]*"', f'"expr_str": "{code}"', content.decode(), count=1)
        assert count == 1
        return text.encode()

    bad = changed(archive, tmp_path / "n.pt2", MODEL, change)
    with pytest.raises(BnfoldError, match="names an expression that bnfold does not know"):
        load_program(bad)
    assert not written.exists()
    with contextlib.suppress(BnfoldError):
        load_program(bad, trust=True)
    assert written.exists()


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__base__.__subclasses__()",
        "Symbol('s0').func",
        "lambdify(s0, s0)",
        "preview(s0)",
        "eval('1')",
        "[s0 for s0 in (1,)]",
        "Symbol('s0); import os')",
        "Symbol(f'{s0}')",
        "s0 if s0 else s1",
        "(s0 := 3)",
        "9**9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
        "LShift(1, 10**9)",
        "(" * 500 + "s0" + ")" * 500,
        "s0\n",
        "s0 # comment",
        "",
    ],
)
@pytest.mark.parametrize("where", ["expr_str", "range"])
def test_expressions_that_are_no_sizes(tmp_path, archive, text, where) -> None:
    def edit(program: dict) -> None:
        if where == "range":
            program["range_constraints"][text] = {"min_val": 0, "max_val": None}
        else:
            tensors = program["graph_module"]["graph"]["tensor_values"].values()
            sizes = [size["as_expr"] for tensor in tensors for size in tensor["sizes"] if "as_expr" in size]
            sizes[-1]["expr_str"] = text

    with pytest.raises(BnfoldError, match=r"n\.pt2: (names an expression|is not a torch)"):
        scan(changed(archive, tmp_path / "n.pt2", MODEL, edited(edit)))


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.save.default",  # of TorchScript's, and writes a file
        "torch.ops.aten.from_file.default",
        "torch.ops.load_library",
        "torch.ops.aten.conv2d.default._op.__self__",
        "torch.ops.aten.__class__.default",
        "torch.sym_max.__globals__",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "math.__loader__.load_module",
        "#bnfold:anything",
        "builtins.exec",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "",
    ],
)
def test_operators_that_are_none(tmp_path, archive, target) -> None:
    def edit(program: dict) -> None:
        nodes(program)[-1]["target"] = target

    with pytest.raises(BnfoldError, match="names an operator that bnfold does not know"):
        scan(changed(archive, tmp_path / "n.pt2", MODEL, edited(edit)))


INJECTED = "x); import os; os.system('touch written') #"


def _in_names(program: dict) -> None:
    for one in (
        program["graph_module"]["graph"]["inputs"][-1],
        program["graph_module"]["signature"]["input_specs"][-1],
    ):
        (one.get("as_tensor") or one["user_input"]["arg"]["as_tensor"])["name"] = INJECTED


def _in_argument_names(program: dict) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [INJECTED]


def _in_a_layers_name(program: dict) -> None:
    program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = 'down")(os.system("x'


def _in_a_node(program: dict) -> None:
    nodes(program)[0]["name"] = INJECTED


def _in_a_key(program: dict) -> None:
    program["graph_module"]["graph"]["tensor_values"]["x'); y('"] = {}


def _in_a_tensor_called_metadata(program: dict) -> None:
    size = {"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}
    program["graph_module"]["graph"]["tensor_values"]["metadata"] = {"sizes": [size], "target": "torch.add"}


def _object(program: dict) -> None:
    program["graph_module"]["graph"]["custom_obj_values"] = {"a": {"name": "a", "class_fqn": "b"}}


def _tree(kind: str, context: str) -> Callable[[dict], None]:
    def edit(program: dict) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        signature["out_spec"] = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _in_names,
        _in_argument_names,
        _in_a_layers_name,
        _in_a_node,
        _in_a_key,
        _in_a_tensor_called_metadata,
        _object,
        _tree("collections.defaultdict", '{"default_factory_module": "os", "default_factory_name": "getcwd"}'),
        _tree("builtins.dict", '[{"__enum__": true, "fqn": "antigravity:x", "name": "y"}]'),
        _tree("builtins.dict", '{"__enum__": true, "fqn": "antigravity:x", "name": "y"}'),
        _tree("unknown.Type", "[]"),
    ],
)
def test_names_and_containers_that_would_run_or_import(tmp_path, archive, edit) -> None:
    with pytest.raises(BnfoldError, match="that bnfold does not know"):
        scan(changed(archive, tmp_path / "n.pt2", MODEL, edited(edit)))


@pytest.mark.parametrize(
    "edit", [lambda program: program.clear(), lambda program: program.update(range_constraints=[3])]
)
def test_a_program_that_is_none(tmp_path, archive, edit) -> None:
    with pytest.raises(BnfoldError, match=r"n\.pt2"):
        load_program(changed(archive, tmp_path / "n.pt2", MODEL, edited(edit)))


def test_given_sizes_are_checked_against_the_ranges_of_the_program(tmp_path) -> None:
    shapes = ({0: Dim("batch"), 2: Dim("height", min=8, max=64), 3: Dim("width", min=4)},)
    with silenced():
        program = torch.export.export(plain().eval(), (torch.randn(2, 3, 16, 24),), dynamic_shapes=shapes)
    program._example_inputs = None
    torch.export.save(program, tmp_path / "net.pt2")
    done = bnfold("inspect", tmp_path / "net.pt2", "--input", "3,64,8", "--batch", 1)
    assert done.returncode == 0, done.stderr
    for given, told in [("3,65,8", "--input input: axis 2 of input 'input' is from 8 to 64 in the file, not 65"),
                        ("3,7,8", "is from 8 to 64 in the file, not 7"),
                        ("4,8,8", "axis 1 of input 'input' is 3 in the file, not 4")]:  # fmt: skip
        assert told in refused("inspect", tmp_path / "net.pt2", "--input", given)


def save_twice_as_wide_as_high(path: Path, pooled: int) -> None:
    """A program that computes the width of its input from the height."""
    height = Dim("height", min=4, max=64)
    layers = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(pooled), nn.Flatten()
    with silenced():
        program = torch.export.export(
            nn.Sequential(*layers).eval(),
            (torch.randn(2, 3, 8, 16),),
            dynamic_shapes=({0: Dim("n"), 2: height, 3: 2 * height},),
        )
    program._example_inputs = None
    torch.export.save(program, path)


def test_a_size_that_the_program_computes_from_others_is_given_with_them(tmp_path) -> None:
    save_twice_as_wide_as_high(tmp_path / "net.pt2", pooled=1)
    fold = ("fold", tmp_path / "net.pt2", "--out", tmp_path / "r", "--samples", 2)
    for given, told in [((), r"--input: axis 3 of input 'input' is 2\*s\d+ in the file, computed from others"),
                        (("--input", "3,8,20"), r"axis 3 of input 'input' is 2\*s\d+, so 16, in the file, not 20"),
                        (("--input", "3,8,W"), r"so 16, in the file, not W")]:  # fmt: skip
        assert re.search(told, refused(*fold, *given))
    done = bnfold(*fold, "--input", "3,8,16")
    assert done.returncode == 0, done.stderr


def test_a_program_that_computes_a_size_and_has_to_be_traced_again(tmp_path) -> None:
    save_twice_as_wide_as_high(tmp_path / "net.pt2", pooled=2)
    told = refused("inspect", tmp_path / "net.pt2", "--input", "3,8,16")
    assert re.search(r"computes a size from others \(axis 3 of input 'input' is 2\*s\d+\), and PyTorch cannot", told)
