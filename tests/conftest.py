from gevent import monkey

monkey.patch_all()

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, pairwise
from pathlib import Path
from uuid import uuid4

import gevent
import hypothesis
import pytest

from client import ChatClient
from testkit import Missing
from testkit.group import run_group
from testkit.processes import untraced
from testkit.programs import Program, ScreenProgram, StartLines, StartTerminal
from testkit.redis_server import RedisServer, run_redis
from testkit.scripted_server import SECONDS, ScriptedServer
from testkit.server import SERVER, ServerProcess, StartServer, run_server

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # ignored in a shell's background jobs, and programs would inherit that
for name in [name for name in os.environ if name.startswith("CHAT_")]:
    del os.environ[name]  # the developer's own options


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="FOLDER", help="run what no other run has begun that shares this empty folder")
    parser.addoption("--group", metavar="N", type=int, help="N nodes over a Redis, where the tests say one server")
    parser.addoption("--haproxy", action="store_true", help="with --group: HAProxy stands before the nodes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--haproxy") and not config.getoption("--group"):
        raise pytest.UsageError("--haproxy stands before nodes: --group says how many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--group"):
        alone = [item for item in items if item.get_closest_marker("one_server")]
        items[:] = [item for item in items if item not in set(alone)]
        config.hook.pytest_deselected(items=alone)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --share several runs do all tests together: each takes the next one that nobody has."""
    folder = session.config.getoption("--share")
    if not folder or session.testsfailed or session.config.option.collectonly:
        return None  # as ever
    ours = (item for number, item in enumerate(slow_ones_spread(session.items)) if is_first(Path(folder, str(number))))
    for item, following in pairwise(chain(ours, [None])):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    return True


def slow_ones_spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Never many of them at once, and none at the very end, when it would run alone."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    places = {
        item: share * number / len(part)
        for part, share in ((slow, 0.9), (others, 1.0))
        for number, item in enumerate(part)
    }
    return sorted(items, key=places.__getitem__)


def is_first(file: Path) -> bool:
    """Make this file; False where somebody else has."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with skipping_what_is_missing():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with skipping_what_is_missing():
        yield


@contextmanager
def skipping_what_is_missing() -> Iterator[None]:
    """Skip the test if the machine lacks a program that it needs; the reason says how to get it."""
    try:
        yield
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def coverage_of_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure only tests marked `measured`: coverage doubles a process's start, and many tests cover the same code."""
    if not request.node.get_closest_marker("measured"):
        for name in os.environ.keys() - untraced().keys():
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def files_are_closed() -> Iterator[None]:
    """gevent closes files in the next turn of its loop. A test that never yields to it may leave a thousand open."""
    yield
    gevent.sleep(0.001)


@pytest.fixture
def start_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartServer]:
    """Starts real servers, `start_server("--max-users", 3)`, on free ports; each must end as run_server demands."""
    if nodes := request.config.getoption("--group"):
        redis: RedisServer = request.getfixturevalue("shared_redis")
        with start_groups(redis, tmp_path, nodes, request.config.getoption("--haproxy")) as start_group:
            yield start_group
        return
    with ExitStack() as servers:

        def start(
            *options: object, data_dir: Path = tmp_path / "data", program: Sequence[str] = SERVER
        ) -> ServerProcess:
            return servers.enter_context(run_server(data_dir, *options, program=program))

        yield start


@contextmanager
def start_groups(redis: RedisServer, folder: Path, nodes: int, behind_haproxy: bool) -> Iterator[StartServer]:
    """Starts groups in place of servers, over this Redis. The same `data_dir` means the same database."""
    prefixes: dict[Path, str] = {}
    with ExitStack() as groups:

        def start(*options: object, data_dir: Path = folder / "data", program: Sequence[str] = SERVER) -> ServerProcess:
            prefix = prefixes.setdefault(data_dir, f"test-{uuid4().hex}")
            group = run_group(
                data_dir,
                redis.url,
                *options,
                nodes=nodes,
                behind_haproxy=behind_haproxy,
                prefix=prefix,
                program=program,
            )
            return groups.enter_context(group)

        yield start


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A real server with the default options."""
    return start_server()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to stop, pause and cut off."""
    with run_redis(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that do it no harm, each with its own `redis_prefix`."""
    with run_redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def redis_prefix() -> str:
    """A prefix for Redis keys that no other test uses."""
    return f"test-{uuid4().hex}"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with an empty home."""
    return {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "CHAT_PASSWORD": ""}


@pytest.fixture
def terminal(home: dict[str, str]) -> Iterator[StartTerminal]:
    """Starts terminal.py at a terminal."""
    with ExitStack() as programs:

        def start(*arguments: object, **environment: str) -> ScreenProgram:
            return programs.enter_context(ScreenProgram("terminal.py", *arguments, environment=home | environment))

        yield start


@pytest.fixture
def lines(home: dict[str, str]) -> Iterator[StartLines]:
    """Starts terminal.py with pipes; `typed` is its whole input."""
    with ExitStack() as programs:

        def start(*arguments: object, typed: str | None = None, **environment: str) -> Program:
            program = programs.enter_context(Program("terminal.py", *arguments, environment=home | environment))
            if typed is not None:
                program.type(typed)
                program.end_input()
            return program

        yield start


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A server that the test scripts."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def bob(server: ServerProcess) -> Iterator[ChatClient]:
    """A client that is online as bob (1)."""
    with ChatClient(server.host, server.port, SECONDS) as client:
        client.login("bob")
        yield client
