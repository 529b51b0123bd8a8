"""What every archive does: that of a lone server, and that of a node over Redis."""

import pytest

from chatserver.backend import Backend
from chatserver.messages.archive import Archive
from chatserver.messages.batch import Batch
from chatstorage.chats import ChatRow, messages
from tests.conftest import OpenBackend
from tests.users import come, go, texts


@pytest.fixture
def archive(backend: Backend) -> Archive:
    """alice (1) is online, bob (2) has signed up."""
    come(backend, "alice", mails=True)
    go(backend, come(backend, "bob"))
    assert backend.archive is not None
    return backend.archive


def batch(backend: Backend, archive: Archive, text: str) -> Batch:
    """A batch from alice to bob that is owed."""
    return Batch(1, 2, *texts(text), backend.counters, archive.settled, owed=True)


def again(backend: Backend, archive: Archive, row: ChatRow) -> Batch:
    """The batch of a row in the mailbox."""
    return Batch(
        row.sender,
        row.receiver,
        b"",
        row.count,
        backend.counters,
        archive.settled,
        owed=True,
        id=row.id,
        written=row.waiting,
        delivered_count=row.count - row.waiting,
    )


def mail(backend: Backend, archive: Archive) -> list[bytes]:
    """What waits for bob; it is delivered then."""
    found: list[bytes] = []
    for taken, packets in archive.take_mail(2, lambda: True, lambda row: again(backend, archive, row)):
        found += packets
        taken.delivered(len(packets))
    return found


def put(backend: Backend, archive: Archive, *said: str) -> int:
    alice = backend.presence.find(1)
    assert alice is not None
    return archive.put_in_mailbox(alice, 2, texts(*said), 1)


def test_an_empty_mailbox_has_no_mail(backend: Backend, archive: Archive) -> None:
    assert mail(backend, archive) == []
    assert archive.waiting_messages() == 0


def test_mail_is_taken_oldest_first_and_once(backend: Backend, archive: Archive) -> None:
    assert put(backend, archive, "one", "two") == 2
    assert put(backend, archive, "three") == 1
    assert archive.waiting_messages() == 3
    assert archive.has_mail(2)
    assert mail(backend, archive) == [texts(text).packets for text in ("one", "two", "three")]
    assert mail(backend, archive) == []
    assert archive.last(1, 2, 0) is not None  # which commits
    assert archive.waiting_messages() == 0


def test_taking_mail_ends_when_the_receiver_does_not_go_on(backend: Backend, archive: Archive) -> None:
    put(backend, archive, "one")
    taken = archive.take_mail(2, lambda: False, lambda row: again(backend, archive, row))
    assert list(taken) == []
    assert mail(backend, archive) == [texts("one").packets]


def test_the_past_has_what_was_added_just_now(backend: Backend, archive: Archive) -> None:
    archive.add(one := batch(backend, archive, "one"))
    rows = archive.last(1, 2, 10)
    assert [messages(row) for row in rows] == [[texts("one").packets]]
    one.delivered(1)
    assert mail(backend, archive) == []


def test_the_dropped_part_of_an_owed_batch_is_mail(backend: Backend, archive: Archive) -> None:
    archive.add(one := batch(backend, archive, "one"))
    one.dropped(1)
    assert mail(backend, archive) == [texts("one").packets]


def test_an_archive_that_can_write_has_room(archive: Archive) -> None:
    assert archive.wait_for_room()


def test_added_batches_are_there_after_a_restart(open_backend: OpenBackend) -> None:
    before = open_backend("--sync", "interval")
    come(before, "alice")
    go(before, come(before, "bob"))
    assert before.archive is not None
    before.archive.add(batch(before, before.archive, "one"))
    after = open_backend("--sync", "interval")
    assert after.archive is not None
    assert [messages(row) for row in after.archive.last(1, 2, 10)] == [[texts("one").packets]]
