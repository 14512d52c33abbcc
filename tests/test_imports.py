"""The house stands as planned: imports point one way, heavy libraries wait, files stay short, examples run."""

import ast
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgpt

PACKAGE = Path(jaxgpt.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

# A room imports from rooms on lower floors only.
FLOORS = [("core",), ("tools", "tokenizer", "model"), ("curation",), ("data",), ("tasks", "inference"), ("evals",),
          ("pretrain", "sft", "preference"), ("rl", "chat"), ("plan",), ("model_commands",), ("cli",)]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = {"tensorflow", "tensorflow_datasets", "grain", "array_record", "orbax", "tiktoken", "rustbpe", "tokenizers", "huggingface_hub", "torch",
         "transformers", "apache_beam", "pyarrow", "fsspec", "fastwarc", "resiliparse", "trafilatura", "py3langid", "starlette",
         "uvicorn", "wandb", "tensorboardX"}
GONE = ("flax.nnx", "jax._src", "jax.experimental.pjit", "jax.experimental.maps")
MESH_AXES = {"data", "fsdp", "tensor", "sequence", "expert"}
TAKE_MESH_AXES = {"PartitionSpec", "P", "Mesh", "AbstractMesh", "make_mesh", "shard_map", "psum", "pmean", "pmax", "pmin",
                  "all_gather", "all_to_all", "ppermute", "psum_scatter", "axis_index", "axis_size"}


def imports(tree, *, top_only=False):
    """Full names of what is imported: `from jax import numpy` gives "jax.numpy"; relative ones begin with a dot."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            nodes.extend(ast.iter_child_nodes(node))


def wrong_imports(room, source):
    """The imports of a file in `room` that the plan does not allow."""
    wrong = []
    for name in imports(ast.parse(source)):
        parts = name.split(".")
        if name.startswith(".") or parts[0] in ("experiments", "tests") or name.startswith(GONE):
            wrong.append(name)
        elif parts[0] == "jaxgpt" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != room:
            if room not in FLOOR or FLOOR[parts[1]] >= FLOOR[room]:
                wrong.append(name)
    return wrong


def heavy_imports(source):
    """What is heavy and imported when the file is."""
    return [name for name in imports(ast.parse(source), top_only=True) if name.split(".")[0] in HEAVY]


def named_mesh_axes(source):
    """Lines where a mesh axis is spelt out: in what takes axis names, in mesh.shape[...], or as axis_name=."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        places = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            places += [*node.args, *(word.value for word in node.keywords)] if called in TAKE_MESH_AXES else []
            places += [word.value for word in node.keywords if word.arg in ("axis_name", "axis_names")]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            places = [node.slice]
        for inner in (inner for place in places for inner in ast.walk(place)):
            if isinstance(inner, ast.Constant) and inner.value in MESH_AXES:
                lines.append(node.lineno)
    return lines


def room_of(name):
    return Path(name).parts[0].removesuffix(".py")


def test_every_room_has_a_floor():
    rooms = {room_of(name) for name in NAMES} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR) and len(rooms) > 8


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_to_lower_floors(name):
    assert wrong_imports(room_of(name), (PACKAGE / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_heavy_libraries_wait_until_they_are_needed(name):
    assert heavy_imports((PACKAGE / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_one_file_names_the_mesh_axes(name):
    found = named_mesh_axes((PACKAGE / name).read_text())
    assert found == [] or name == str(Path("core") / "sharding.py")


def test_that_file_does():
    assert named_mesh_axes((PACKAGE / "core" / "sharding.py").read_text())


def test_the_checks_can_fail():
    assert wrong_imports("model", "from jaxgpt.data import loader") == ["jaxgpt.data.loader"]
    assert wrong_imports("model", "def f():\n  import jaxgpt.tokenizer.bpe") == ["jaxgpt.tokenizer.bpe"]  # sideways
    assert wrong_imports("core", "from flax import nnx\nfrom jax._src import core\nfrom . import x") == [
        "..x", "jax._src.core", "flax.nnx"]
    assert wrong_imports("data", "import jaxgpt\nfrom jaxgpt.core.files import sha256\nfrom jaxgpt.data import x") == []
    assert heavy_imports("try:\n  import grain\nexcept ImportError:\n  pass") == ["grain"]
    assert heavy_imports("def f():\n  import grain") == []
    assert named_mesh_axes("x = jax.lax.psum(x, 'data')\ny = mesh.shape['tensor']\nf(axis_name='fsdp')\nP(('data',))")
    assert not named_mesh_axes("x = shard(x, 'batch', 'seq')\nlayout = Layout(data=1)\nrules = 'fsdp'")


def test_no_module_imports_itself_by_a_detour():
    """Floors rule out circles between rooms; this rules them out within one. What a function imports counts too."""
    modules = {"jaxgpt." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path
               for name, path in zip(NAMES, FILES)}
    edges = {}
    for module, path in modules.items():
        found = set()
        for name in imports(ast.parse(path.read_text())):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found.add(name)
        edges[module] = found - {"", "jaxgpt", module}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            path.append(module)
            for other in sorted(edges.get(module, ())):
                visit(other)
            done.add(path.pop())

    for module in sorted(edges):
        visit(module)


def modules_after(code):
    """Names of all modules in a fresh process after `code`."""
    code += "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_mathematics_comes_without_the_house():
    """`import jaxgpt.rl.losses` costs what jax costs."""
    bare, losses = modules_after("import jax.numpy, numpy"), modules_after("import jaxgpt.rl.losses")
    ours = {name for name in losses if name.split(".")[0] == "jaxgpt"}
    assert ours == {"jaxgpt", "jaxgpt.core", "jaxgpt.core.shapes", "jaxgpt.rl", "jaxgpt.rl.losses"}
    new = {name.split(".")[0] for name in losses} - {name.split(".")[0] for name in bare}
    assert new - set(sys.stdlib_module_names) == {"jaxgpt"}


def test_help_comes_without_jax():
    found = modules_after("from jaxgpt.cli import main\ntry:\n  main(['--help'])\nexcept SystemExit:\n  pass")
    assert "jaxgpt.cli" in found
    assert not {name.split(".")[0] for name in found} & {"jax", "jaxlib", "numpy", "flax", "optax", *HEAVY}


# --- a ratchet: what passes these lengths is asking to be split by meaning -------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_stay_short(name):
    source = (PACKAGE / name).read_text()
    assert len(source.splitlines()) <= 400
    long = [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80]
    assert long == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_says_what_it_is(name):
    tree = ast.parse((PACKAGE / name).read_text())
    assert ast.get_docstring(tree), "the module"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert [node.name for node in tree.body
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)] == []


MODULES = sorted(found.name for found in pkgutil.walk_packages([str(PACKAGE)], "jaxgpt."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {name for name in MODULES
                     if any(test.examples for test in finder.find(importlib.import_module(name)))}
    assert {"jaxgpt.core.shapes", "jaxgpt.core.config", "jaxgpt.core.sharding"} < with_examples
