"""Which users take part in a load test: those that have something to do with these tags and options."""

import sys
from argparse import Namespace
from collections.abc import Iterable

from locust import User
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.runners import WorkerNode
from locust.user.task import filter_tasks_by_tags

from loadtest.locust.users import LoadUser


def select_users(environment: Environment) -> None:
    """Leave out the users that take no part. The web page may change the options, so each new run looks again.

    A user class that is named on the command line, and takes no part, ends the program.
    """
    options = environment.parsed_options or Namespace(headless=False, tags=None, exclude_tags=None)
    _drop_users_without_tasks(environment, options)
    if options.headless:
        named = {user.__name__ for user in environment.user_classes} & set(options.user_classes)
        for user in environment.user_classes:
            if user.__name__ in named and (objection := _objection(user, options)):
                sys.exit(objection)
        environment.user_classes = participants(environment.user_classes, options)

    class Dispatcher(UsersDispatcher):
        """Decides which users are started; Locust creates a new one for each run."""

        def __init__(self, worker_nodes: list[WorkerNode], user_classes: list[type[User]]) -> None:
            super().__init__(worker_nodes, participants(user_classes, options))

    environment.dispatcher_class = Dispatcher


def participants(users: list[type[User]], options: Namespace) -> list[type[User]]:
    """Return the user classes that take part; all of them if none does, and then check_users() ends the run."""
    return [user for user in users if not _objection(user, options)] or users


def check_users(users: Iterable[type[LoadUser]], options: Namespace) -> str:
    """Return why these users cannot run with these options; "" if they can."""
    wrong = [user.check(options) for user in users]
    objections = [user.objection(options) for user in users]
    return next(filter(None, wrong), "") or (objections[0] if objections and all(objections) else "")


def _objection(user: type[User], options: Namespace) -> str:
    return user.objection(options) if issubclass(user, LoadUser) else ""


def _drop_users_without_tasks(environment: Environment, options: Namespace) -> None:
    """Filter by --tags here: Locust would start users that have no task left, and log a traceback for each."""
    tags, excluded = (set(chosen) if chosen else None for chosen in (options.tags, options.exclude_tags))
    for user in environment.user_classes:
        filter_tasks_by_tags(user, tags, excluded)
    environment.user_classes = [user for user in environment.user_classes if user.tasks]
    if not environment.user_classes:
        sys.exit("no user has a task with these tags")
