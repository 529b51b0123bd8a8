"""Prepares a process of a load test when Locust starts: a worker, or the process that gives the verdict."""

import signal

import gevent
from locust.env import Environment
from locust.event import Events
from locust.runners import Runner, WorkerRunner

from loadtest.locust.coordinator import Coordinator, coordinators
from loadtest.locust.participation import select_users
from loadtest.locust.process import Worker


def listen(events: Events) -> None:
    """Listen to Locust's start."""
    events.init.add_listener(_start)


def _start(environment: Environment, runner: Runner, **_: object) -> None:
    _interrupt_main(signal.SIGINT)
    if environment.shape_class and environment.parsed_options and environment.parsed_options.headless:
        # while a shape runs, Locust does not listen to SIGTERM
        _interrupt_main(signal.SIGTERM)
    if isinstance(runner, WorkerRunner):
        Worker(environment, runner).listen()
    else:
        select_users(environment)
        coordinators[environment] = Coordinator(environment, runner)
        coordinators[environment].listen()


def _interrupt_main(signum: int) -> None:
    """Make this signal interrupt the main greenlet, instead of the running one: a user would end without leaving.

    The second signal ends the process at once.
    """
    main = gevent.getcurrent()

    def interrupt() -> None:
        watcher.cancel()
        signal.signal(signum, signal.SIG_DFL)
        gevent.kill(main, KeyboardInterrupt)

    watcher = gevent.signal_handler(signum, interrupt)
