from gevent import monkey

monkey.patch_all()

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

import gevent
import hypothesis
import pytest

from chatserver.backend import Backend, open_folder
from chatserver.operations.options import parse_options
from client import ChatClient
from cluster.group import join_group
from testkit import Missing
from testkit.group import run_group
from testkit.processes import untraced
from testkit.programs import Program, ScreenProgram, StartLines, StartTerminal
from testkit.redis_server import RedisServer, run_redis
from testkit.scripted_server import SECONDS, ScriptedServer
from testkit.server import SERVER, ServerProcess, StartServer, run_server
from tests import xdist_threads  # noqa: F401  # which lets xdist run what gevent has patched
from tests.unit import forbid_processes, is_unit_test

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("shared machine")
# Programs would inherit that these are ignored, SIGINT by a shell's background jobs and SIGHUP by nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in [name for name in os.environ if name.startswith("CHAT_")]:
    del os.environ[name]  # the developer's own options

OpenBackend = Callable[..., Backend]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--group", metavar="N", type=int, help="N nodes over a Redis, where the tests say one server")
    parser.addoption("--haproxy", action="store_true", help="with --group: HAProxy stands before the nodes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--haproxy") and not config.getoption("--group"):
        raise pytest.UsageError("--haproxy stands before nodes: --group says how many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_unit_test(item):
            item.add_marker("unit")
    if hasattr(config, "workerinput"):  # several runs at once, by pytest-xdist
        items[:] = slow_ones_spread(items)
    if config.getoption("--group"):
        alone = [item for item in items if item.get_closest_marker("one_server")]
        items[:] = [item for item in items if item not in set(alone)]
        config.hook.pytest_deselected(items=alone)


def slow_ones_spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Spread the slow tests evenly, so that few of them run at once and none runs alone at the end."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    places = {
        item: share * number / len(part)
        for part, share in ((slow, 0.9), (others, 1.0))
        for number, item in enumerate(part)
    }
    return sorted(items, key=places.__getitem__)


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
def unit_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    with forbid_processes(request.node.nodeid) if request.node.get_closest_marker("unit") else nullcontext():
        yield


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


@pytest.fixture(params=["lone", "redis"])
def open_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenBackend]:
    """Opens the backend of a lone server, or of a node of a group; another call stands for a restart."""
    options = ["--data-dir", str(tmp_path / "data")]
    if request.param == "redis":
        engine: RedisServer = request.getfixturevalue("shared_redis")
        options = ["--redis", engine.url, "--redis-prefix", request.getfixturevalue("redis_prefix"), "--lease", "4"]
    with ExitStack() as stack:

        def start(*more: str) -> Backend:
            stack.close()
            parsed = parse_options([*options, *more])
            backend = join_group(parsed, 0.05, stack) if parsed.redis else open_folder(parsed, 0.05, stack)
            backend.start(lambda *_: None)
            return backend

        yield start


@pytest.fixture
def backend(open_backend: OpenBackend) -> Backend:
    """The backend with the default options."""
    return open_backend()
