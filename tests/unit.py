"""Which tests start no process: `make unit` runs them on every save.

Nobody has to mark them. A test is a unit test when neither its code, nor that of its fixtures, nor any function that
they can reach in the packages below (OURS), names something of the subprocess module. To be sure, a unit test that
starts a process all the same fails (`forbid_processes`).
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType

import pytest

OURS = {"tests", "testkit", "stress", "benchmarks", "loadtest"}  # nothing else in the project starts a process
STARTERS = {"subprocess", "gevent.subprocess", "psutil", "platform"}  # platform runs uname
PARAMETERS = {"redis", "terminal", "lines"}  # of tests that ask for such a fixture with request.getfixturevalue()
EVENTS = {"os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen"}

_known: dict[object, bool] = {}  # whether it starts a process
_forbidden: list[str] = []  # the unit test that runs at present


def is_unit_test(item: pytest.Item) -> bool:
    """Hypothesis's state machines, which are no functions, take seconds each and do not count."""
    if not isinstance(item, pytest.Function) or item.cls or item.get_closest_marker("slow"):
        return False
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(value in PARAMETERS for value in parameters if isinstance(value, str)):
        return False
    fixtures = (fixture.func for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found)
    seen: set[object] = set()
    if any(starts_process(each, seen) for each in (item.obj, *fixtures)):
        return False
    _known.update(dict.fromkeys(seen, False))
    return True


def starts_process(thing: object, seen: set[object]) -> bool:
    """Whether code of this function or class can reach the subprocess module. `seen` is being looked at already."""
    if isinstance(thing, ModuleType):
        return thing.__name__ in STARTERS
    if not isinstance(thing, FunctionType | type):
        return False
    if thing.__module__ in STARTERS:
        return True
    if thing.__module__.partition(".")[0] not in OURS or thing in seen:
        return False
    if thing not in _known:
        seen.add(thing)
        if not any(starts_process(each, seen) for each in _reached_by(thing)):
            return False
        _known[thing] = True
    return _known[thing]


def _reached_by(thing: FunctionType | type) -> Iterator[object]:
    if isinstance(thing, type):
        for cls in thing.__mro__:
            for member in vars(cls).values():
                yield getattr(member, "__func__", None) or getattr(member, "fget", None) or member
    else:
        function = inspect.unwrap(thing)
        yield from _named(function.__code__, function.__globals__)


def _named(code: CodeType, names: dict[str, object]) -> Iterator[object]:
    """What the names in this code, and in the functions within it, stand for in its module."""
    for name in code.co_names:
        thing = names.get(name)
        yield thing
        if isinstance(thing, ModuleType):  # as in processes.run_server()
            yield from (vars(thing).get(other) for other in code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant, names)


@contextmanager
def forbid_processes(test: str) -> Iterator[None]:
    """While this test runs the attempt to start a process raises AssertionError."""
    _forbidden.append(test)
    try:
        yield
    finally:
        _forbidden.remove(test)


def _audit(event: str, _: object) -> None:
    if _forbidden and event in EVENTS:
        raise AssertionError(
            f"{_forbidden[-1]} counts as a unit test and starts a process ({event}): see tests/unit.py"
        )


sys.addaudithook(_audit)
