"""Copies a database while it may be in use."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from chatstorage.files import fsync_folder, replace

ATTEMPTS = 3


class BackupFailed(Exception):
    """Why there is no copy, for the operator."""


def back_up(
    source: Path,
    target: Path,
    files: tuple[str, ...],
    committed: Callable[[], dict[str, int]],
    copy_more: Callable[[], object],
) -> None:
    """Copy the `files` of the database in `source` to `target`, an empty folder or one to be made: whole, or nothing.

    `committed` asks whoever has the database open, as Storage.committed does; `copy_more` adds what can be copied by
    itself. Raises BackupFailed, OSError, and what `copy_more` does.
    """
    if target.exists() and any(target.iterdir()):
        raise BackupFailed(f"{target} is not empty")
    with _new_folder(target):
        copy_more()  # first: it may lack what is in the files, and must not have what they lack
        for _ in range(ATTEMPTS):
            if data := _read(source, files, committed):
                _store(target, data)
                return
        raise BackupFailed(f"the files in {source} are replaced all the time")


def _read(source: Path, files: tuple[str, ...], committed: Callable[[], dict[str, int]]) -> dict[str, bytes]:
    """What is committed, by file; nothing where an opening of the database has replaced a file meanwhile.

    A file is opened before anybody is asked how much of it is committed: that much of it never changes.
    """
    with ExitStack() as stack:
        opened = {name: stack.enter_context((source / name).open("rb")) for name in files if (source / name).exists()}
        lengths = committed()
        for name in lengths:
            if name not in opened or not os.path.samestat(os.fstat(opened[name].fileno()), (source / name).stat()):
                return {}
        return {name: opened[name].read(length) for name, length in lengths.items()}


def _store(target: Path, data: dict[str, bytes]) -> None:
    """The last file in `data` is the one that makes it a database. Raises BackupFailed."""
    try:
        for name, content in data.items():
            replace(target / name, [content])
            fsync_folder(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error


@contextmanager
def _new_folder(target: Path) -> Iterator[None]:
    """Make it, unless it is there; and leave it as it was where the block fails."""
    made = not target.exists()
    if made:
        target.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in target.iterdir():
                path.unlink()
            if made:
                target.rmdir()
        raise
