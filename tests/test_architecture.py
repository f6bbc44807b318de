"""Imports point down, `import poise` is light, the public names are those that are listed, and nothing is unpickled."""

import ast
import builtins
import subprocess
import symtable
import sys
from functools import cache
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
LAYERS = [
    {"storage", "extras"},
    {"features"},
    {"batch"},
    {"baselines"},
    {"diagnostics"},
    {"probe"},
    {"paper"},
    {"presets"},
    {"online"},
    {"loops"},
    {""},
    {"tasks"},
    {"rewards", "models", "evaluate", "report", "engines"},
    {"train"},
    {"doctor"},
    {"lab"},
    {"cli"},
    {"__main__"},
]
"""Packages and root modules, the lowest first: each imports its own row and those before; "" is `poise` itself."""

LIBRARY = set().union(*LAYERS[: LAYERS.index({"loops"}) + 1])


def part_of(module):
    """The first name below `poise`: `poise.engines.trl.config` belongs to `engines`."""
    return f"{module}.".split(".")[1]


def sources():
    return sorted(ROOT.rglob("*.py"))


def module_of(path):
    names = list(path.relative_to(ROOT.parent).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported(path):
    """Every module that a file imports, wherever in the file, with relative imports spelled out."""
    package = list(path.relative_to(ROOT.parent).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if is_module(f"{module}.{alias.name}"))


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@cache
def imports_within_poise():
    """Pairs (importing module, imported module)."""
    return [(module_of(path), name) for path in sources() for name in imported(path) if name.split(".")[0] == "poise"]


def layer(module):
    return next((level for level, parts in enumerate(LAYERS) if part_of(module) in parts), len(LAYERS))


def unbound_names(source, path="<text>"):
    """Names that code reads and nothing binds. Linters that know names leave shapes in annotations no peace."""
    module = symtable.symtable(source, str(path), "exec")
    bound = {each.get_name() for each in module.get_symbols() if each.is_assigned() or each.is_imported()}
    bound |= {*dir(builtins), "__file__", "__path__"}
    tables = [module]
    for table in tables:
        tables += table.get_children()
    return {
        each.get_name()
        for table in tables
        for each in table.get_symbols()
        if each.is_referenced() and (each.is_global() or table is module) and each.get_name() not in bound
    }


def test_every_name_is_bound():
    assert unbound_names("def f(x):\n    return [y for k in x] + missing\n") == {"y", "missing"}
    folders = ("src", "tests", "benchmarks", "scripts", "examples")
    own = [path for folder in folders for path in (Path(__file__).parent.parent / folder).rglob("*.py")]
    unbound = {str(path): names for path in own if (names := unbound_names(path.read_text(), path))}
    assert not unbound


def test_every_part_of_the_package_has_a_layer():
    assert {part_of(module_of(path)) for path in sources()} <= set().union(*LAYERS)


def test_imports_point_down():
    upward = [(a, b) for a, b in imports_within_poise() if part_of(a) != part_of(b) and layer(a) < layer(b)]
    assert upward == []


def circular(pairs):
    """Names that reach themselves by following pairs (importing, imported)."""
    edges = {}
    for importing, name in pairs:
        edges.setdefault(importing, set()).add(name)

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = edges.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    return [name for name in edges if name in reached(name)]


def test_no_two_packages_and_no_two_modules_of_the_library_import_each_other_in_a_circle():
    assert circular([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == ["a", "b", "c"]
    assert [module for module in circular(imports_within_poise()) if part_of(module) in LIBRARY] == []
    pairs = {(part_of(a), part_of(b)) for a, b in imports_within_poise()}
    # The rooms themselves; `poise` and `poise.__main__` are doors.
    assert circular([(a, b) for a, b in pairs if a != b and "" not in (a, b)]) == []


def test_the_library_knows_no_engine_no_task_no_model_and_no_command():
    above = set().union(*LAYERS[LAYERS.index({""}) + 1 :])
    assert [(a, b) for a, b in imports_within_poise() if part_of(a) in LIBRARY and part_of(b) in above] == []


def test_engines_do_not_know_each_other_nor_the_method():
    engines = [(a.split("."), b.split(".")) for a, b in imports_within_poise() if part_of(a) == "engines"]
    between = [(a, b) for a, b in engines if {".".join(a[1:3]), ".".join(b[1:3])} == {"engines.trl", "engines.verl"}]
    assert between == []
    method = {"probe", "paper"}
    assert [(a, b) for a, b in engines if part_of(".".join(b)) in method] == []


@pytest.mark.parametrize(("host", "home"), [("trl", "trl"), ("verl", "verl"), ("ray", "verl")])
def test_a_host_is_imported_by_its_own_engine_alone(host, home):
    users = {module_of(path) for path in sources() for name in imported(path) if name.split(".")[0] == host}
    assert {user for user in users if part_of(user) in LIBRARY} == set()
    others = {user for user in users if part_of(user) == "engines" and not user.startswith(f"poise.engines.{home}")}
    assert others == set()


def third_party_modules(statement):
    """Top-level modules outside the standard library that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if name not in sys.stdlib_module_names and not name.startswith("_")}


def test_importing_poise_loads_torch_numpy_and_jaxtyping_alone():
    light = third_party_modules("import torch, numpy, jaxtyping")
    assert third_party_modules("import poise; poise.OnlineBaseline") - light == {"poise"}
    # The control: a heavy import would be seen.
    assert "sklearn" in third_party_modules("import sklearn") - light


def test_the_public_names_are_those_listed():
    assert sorted(poise.__all__) == sorted(set(poise.__all__))
    tree = ast.parse((ROOT / "__init__.py").read_text())
    offered = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("poise")
        for alias in node.names
    }
    assert offered == set(poise.__all__)
    assert all(hasattr(poise, name) for name in poise.__all__)


def called(path):
    """Names that a file calls, as they are written: `torch.load`, `eval`."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_no_file_unpickles_or_evaluates(path):
    modules = {name.split(".")[0] for name in imported(path)}
    assert modules.isdisjoint({"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"})
    forbidden = {"eval", "exec", "torch.load", "torch.save", "numpy.load", "np.load", "__import__"}
    if module_of(path) == "poise.tasks.program_harness":
        forbidden -= {"eval", "exec"}  # it is run by nobody but the sandbox, behind its walls
    assert called(path).isdisjoint(forbidden)


def test_the_script_that_evaluates_is_imported_by_nobody():
    for path in sources():
        assert not any(name.startswith("poise.tasks.program_harness") for name in imported(path))


def test_every_file_says_what_it_is_for():
    assert [module_of(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_header_begins_with_what_the_file_is_and_holds_no_riddle():
    headers = {module_of(path): ast.get_docstring(ast.parse(path.read_text())) or "" for path in sources()}
    asking = [name for name, text in headers.items() if text.split("\n")[0].rstrip().endswith("?")]
    assert asking == []
    assert [name for name, text in headers.items() if "The rule" in text] == []


def test_no_file_is_named_for_nothing():
    empty = {"utils", "common", "helpers", "core", "base", "manager", "handler"}
    assert [path.name for path in sources() if path.stem in empty] == []
