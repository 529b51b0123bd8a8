"""Which room of the project may import which: the staircase, and what stays out of a room altogether.

A room is a module or a package of the tables below; the longest name that fits counts. Imports inside functions count,
too. An import that climbs is a sign that a function or an interface belongs one floor lower.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import cluster
from testkit.processes import ROOT

STORAGE = {"protocol", "chatstorage", "storage"}
NETWORK = {"protocol", "chatnet"}
CLIENT = {*NETWORK, "chatclient", "client"}
LOADTEST = {"loadtest", "loadtest.core", "loadtest.locust", "loadtest.chat"}

# The server's rooms, the lowest first: each may import those before it, the storage and chatnet.
STAIRCASE = (
    "chatserver",  # the version
    "chatserver.counters",
    "chatserver.workers",
    "chatserver.transport",
    "chatserver.people",
    "chatserver.messages",
    "chatserver.backend",
    "chatserver.session",
    "chatserver.places",
    "chatserver.listener",
    "chatserver.operations",
)
UP_TO_BACKEND = STAIRCASE[: STAIRCASE.index("chatserver.session")]  # what a group implements in another way
SHIPPED = {*STORAGE, *STAIRCASE, *CLIENT, "cluster", "server", "admin", "chatterminal", "terminal", "streams", "table"}

# What each room may import in addition to itself.
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "streams": set(),
    "table": set(),
    "chatnet": {"protocol"},
    "chatstorage": {"protocol"},
    "storage": {"protocol", "chatstorage"},
    **{room: {*STORAGE, *NETWORK, *STAIRCASE[:floor]} for floor, room in enumerate(STAIRCASE)},
    "cluster": {*STORAGE, *NETWORK, *UP_TO_BACKEND},
    "server": {*STORAGE, *NETWORK, *STAIRCASE, "cluster", "streams"},
    "admin": {*STORAGE, *STAIRCASE, "chatnet", "cluster", "chatterminal", "streams", "table"},
    "chatclient": NETWORK,
    "client": CLIENT,
    "chatterminal": {*CLIENT, "streams"},
    "terminal": {*CLIENT, "chatterminal", "chatserver", "streams"},
    "loadtest": set(),
    "loadtest.core": {"table"},
    "loadtest.locust": {"loadtest", "loadtest.core"},
    "loadtest.chat": {*LOADTEST, *CLIENT},
    "locustfiles": {*LOADTEST, *CLIENT},
    "examples": {"loadtest", "loadtest.core", "loadtest.locust"},
    "testkit": SHIPPED,
    "stress": {*SHIPPED, *LOADTEST, "testkit"},
    "benchmarks": {*SHIPPED, *LOADTEST, "testkit"},
    "tests": {*SHIPPED, *LOADTEST, "testkit", "stress", "benchmarks"},
}

# The only rooms that may import such a package, with tests/, testkit/, stress/ and benchmarks/.
ONLY_IN = {
    "locust": {"loadtest.locust", "loadtest.chat", "locustfiles", "examples"},
    "hdrh": {"loadtest.core"},
    "redis": {"cluster"},
    "hiredis": {"cluster"},
    "prometheus_client": {"chatserver.operations"},
    "prompt_toolkit": {"chatterminal"},
    "argon2": {"chatserver.people", "chatserver.operations"},
    "gevent": {
        *(room for room in STAIRCASE if room.startswith("chatserver.")),
        *("cluster", "server", "loadtest.locust", "loadtest.chat", "locustfiles", "examples"),
    },
    "pytest": set(),
}
UNLIMITED = {"tests", "testkit", "stress", "benchmarks"}

# Tests import such a room only to test it.
TESTS_OF = {
    "stress": {
        "test_crash",
        "test_fuzz",
        "test_memory",
        "test_mutations",
        "test_restart",
        "test_slow_reader",
        "test_stress",
    },
    "benchmarks": {"test_benchmark", "unpatched_benchmark"},
}

FILES = sorted(
    file
    for place in [".", *{room.partition(".")[0] for room in MAY_IMPORT}]
    for file in (ROOT.glob("*.py") if place == "." else (ROOT / place).rglob("*.py"))
)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = set(map(module_of, FILES))


def room_of(module: str) -> str | None:
    """None for a package that is not ours."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), None)


@cache
def imports(file: Path) -> list[tuple[int, str]]:
    """(line, module) of each import; `from package import module` names the module."""
    return list(_imports(file))


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file}:{node.lineno}: a relative import"
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module


def test_every_module_has_a_room() -> None:
    assert [module for module in sorted(MODULES) if room_of(module) is None] == []
    assert [module for module in sorted(MODULES) if room_of(module) == "chatserver"] == ["chatserver"]


def test_no_imports_go_in_a_circle() -> None:
    graph = {
        module_of(file): {module for _, module in imports(file) if module in MODULES} - {module_of(file)}
        for file in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    climbing = [
        f"{file.relative_to(ROOT)}:{line} imports {module}, but {room} may not import {room_of(module)}"
        for file in FILES
        if room_of(module_of(file)) == room
        for line, module in imports(file)
        if room_of(module) not in {None, room, *MAY_IMPORT[room]}
    ]
    assert climbing == [], "\n".join(["", *climbing])


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    allowed = ONLY_IN[package] | UNLIMITED
    misplaced = [
        f"{file.relative_to(ROOT)}:{line} imports {module}; only {', '.join(sorted(allowed))} may"
        for file in FILES
        if room_of(module_of(file)) not in allowed
        for line, module in imports(file)
        if module.partition(".")[0] == package
    ]
    assert misplaced == [], "\n".join(["", *misplaced])


@pytest.mark.parametrize("room", TESTS_OF)
def test_tests_import_programs_only_to_test_them(room: str) -> None:
    others = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in (ROOT / "tests").glob("*.py")
        if file.stem not in TESTS_OF[room]
        for line, module in imports(file)
        if room_of(module) == room
    ]
    assert others == [], "\n".join(["", *others])


def test_cluster_implements_interfaces_and_inherits_from_no_concrete_class_of_the_server() -> None:
    for file in Path(cluster.__path__[0]).glob("*.py"):
        module = import_module(f"cluster.{file.stem}")
        for _, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == module.__name__:
                ours = [base for base in found.__mro__[1:] if base.__module__.startswith(("chatserver", "chatstorage"))]
                concrete = [base for base in ours if not inspect.isabstract(base) and not issubclass(base, Exception)]
                assert not concrete, f"{found.__name__} inherits from {concrete}"
