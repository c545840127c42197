"""Who may import whom, and that no method's name stands outside its file."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from prefopt.objectives import names

PACKAGE = Path(__file__).parents[1] / "prefopt"
LAYERS = [
    {"errors", "settings", "records", "schedules", "files", "progress", "ranks", "scrub"},
    {"objectives", "credit"},
    {"scoring", "models", "data", "metrics", "rewards", "rollouts"},
    {"module"},
    {"run"},
    {"callbacks", "reports", "sweep", "pipeline"},
    {"config"},
    {"jobs"},
    {"train", "inspect", "export", "evaluate", "sample", "compare", "cli"},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
HYDRA = {"config"}
DISTRIBUTIONS = {"hydra": "hydra-core", "yaml": "pyyaml"}  # where the package's name is not the distribution's


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0].removesuffix(".py"), ast.parse(path.read_text())


def imports(tree: ast.AST, top_level_only: bool = False):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_imports_run_one_way():
    for path, own, tree in modules():
        if own == "__init__":
            continue
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] == "prefopt" and len(parts) > 1:
                assert LEVEL[parts[1]] <= LEVEL[own], f"{path.name} imports {name}"


def test_objectives_import_torch_and_nothing_heavier():
    allowed = {"torch", "prefopt"} | sys.stdlib_module_names
    for path, own, tree in modules():
        if own in ("objectives", "credit", "records"):
            assert {name.split(".")[0] for name in imports(tree)} <= allowed, path


def test_hydra_lives_at_the_edge():
    for path, own, tree in modules():
        if any(name.split(".")[0] == "hydra" for name in imports(tree)):
            assert own in HYDRA, path


def test_no_method_is_named_outside_its_file():
    """The SFT run that fits the tiny base is the one exception: it is what a base is."""
    methods = set(names())
    for path, own, tree in modules():
        if own == "objectives" or path.name == "fit.py":
            continue
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not methods & {s for s in strings if isinstance(s, str)}, path


def test_optional_and_heavy_packages_are_not_needed_to_import():
    """bitsandbytes is an extra; config answers before torch is loaded."""
    import subprocess

    code = "import sys; sys.modules['bitsandbytes'] = None; import prefopt.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert found.stdout.strip() == "False", found.stderr


@pytest.mark.parametrize(
    ("folder", "extras"), [("prefopt", ["quant", "optuna"]), ("tests", ["quant", "optuna", "dev"])]
)
def test_every_imported_package_is_declared(folder, extras):
    """One that another package happens to bring is missing on the next machine."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    requirements = sum((project["optional-dependencies"][extra] for extra in extras), project["dependencies"])
    declared = {re.match(r"[\w-]+", requirement).group() for requirement in requirements}
    own = {"prefopt"} if folder == "prefopt" else {"prefopt", "tests", "benchmarks", "experiments"}
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
        foreign = used - sys.stdlib_module_names - own
        assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= declared, path
