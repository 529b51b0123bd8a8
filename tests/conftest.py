from gevent import monkey

monkey.patch_all()

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from tests.processes import ServerProcess, run_server

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
for name in [name for name in os.environ if name.startswith("CHAT_")]:
    del os.environ[name]  # options of whoever runs the tests

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
