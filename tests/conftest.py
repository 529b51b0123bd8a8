from gevent import monkey

monkey.patch_all()

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import ServerProcess, run_server

StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts real servers, `start_server("--max-users", 3)`, each on a free port, and sees that they end well."""
    with ExitStack() as servers:

        def start(*options: object, data_dir: Path = tmp_path / "data") -> ServerProcess:
            return servers.enter_context(run_server(data_dir, *options))

        yield start


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A real server with the default options."""
    return start_server()
