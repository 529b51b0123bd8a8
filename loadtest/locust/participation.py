"""Which users take part in a run: those that have something to do, by the tags and by the options."""

import sys
from argparse import Namespace
from collections.abc import Iterable

from locust import User
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.runners import WorkerNode

from loadtest.locust.users import LoadUser


def choose(environment: Environment) -> None:
    """Leave the others out. What the web page sets is not known before each run begins, so it is looked at again then.

    A user that was asked for by its name, and takes no part, ends the program.
    """
    options = environment.parsed_options or Namespace(headless=False)
    _drop_users_without_tasks(environment)
    if options.headless:
        named = {user.__name__ for user in environment.user_classes} & set(options.user_classes)
        for user in environment.user_classes:
            if user.__name__ in named and (objection := _objection(user, options)):
                sys.exit(objection)
        environment.user_classes = taking_part(environment.user_classes, options)

    class Dispatcher(UsersDispatcher):
        """Decides who is started; made anew for each run."""

        def __init__(self, worker_nodes: list[WorkerNode], user_classes: list[type[User]]) -> None:
            super().__init__(worker_nodes, taking_part(user_classes, options))

    environment.dispatcher_class = Dispatcher


def taking_part(users: list[type[User]], options: Namespace) -> list[type[User]]:
    """Those that do; all if none does: then check() ends the run."""
    return [user for user in users if not _objection(user, options)] or users


def check(users: Iterable[type[LoadUser]], options: Namespace) -> str:
    """What the users have against a run with these options; "" if nothing."""
    wrong = [user.check(options) for user in users]
    objections = [user.objection(options) for user in users]
    return next(filter(None, wrong), "") or (objections[0] if objections and all(objections) else "")


def _objection(user: type[User], options: Namespace) -> str:
    return user.objection(options) if issubclass(user, LoadUser) else ""


def _drop_users_without_tasks(environment: Environment) -> None:
    """--tags leaves some users nothing to do; Locust would start them, and log a traceback for each."""
    environment._filter_tasks_by_tags()  # noqa: SLF001
    environment.user_classes = [user for user in environment.user_classes if user.tasks]
    if not environment.user_classes:
        sys.exit("no user has a task with these tags")
