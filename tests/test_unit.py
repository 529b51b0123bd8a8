"""What `make unit` leaves out, and that it would notice what it failed to leave out."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest

from testkit import server
from testkit.server import run_to_end
from testkit.wire import Wire
from tests.unit import forbid_processes, starts_process


def runs_a_program() -> None:
    subprocess.run([sys.executable, "--version"], check=True)


def runs_a_program_in_an_inner_function() -> Callable[[], object]:
    return lambda: run_to_end("--version")


def runs_a_program_of_a_module() -> None:
    server.run_to_end("--version")


def asks_the_system() -> None:
    platform.platform()


def reads_a_packet(wire: Wire) -> object:
    return wire.read()


@pytest.mark.parametrize(
    "function", [runs_a_program, runs_a_program_in_an_inner_function, runs_a_program_of_a_module, asks_the_system]
)
def test_a_function_that_can_reach_a_process_is_recognised(function: Callable[..., object]) -> None:
    assert starts_process(function, set())


@pytest.mark.parametrize("function", [reads_a_packet, starts_process, len])
def test_other_functions_are_not(function: Callable[..., object]) -> None:
    assert not starts_process(function, set())


@pytest.mark.parametrize("start", [runs_a_program, os.fork, lambda: os.system("true")])
def test_a_unit_test_that_starts_a_process_fails(start: Callable[[], object]) -> None:
    with forbid_processes("this test"), pytest.raises(AssertionError, match="this test counts as a unit test"):
        start()
