"""Users of a backend, without connections, for the contract tests."""

from chatserver.backend import Backend
from chatserver.people.presence import Member
from chatserver.transport.outbox import Outbox
from protocol import Run, encode_message, encode_user

OUTBOX_BYTES = 65536


def new_member(user_id: int, name: str) -> Member:
    return Member(user_id, encode_user(name, user_id, 1), Outbox(OUTBOX_BYTES, lambda: None))


def come(backend: Backend, name: str, *, mails: bool = False) -> Member:
    """This user, who signs up if need be, is online and has read the list."""
    user = backend.storage.find(name) or backend.storage.sign_up(name, None)
    member = new_member(user.id, name)
    member.mails = mails
    assert backend.presence.join(member)
    member.outbox.free()
    return member


def go(backend: Backend, member: Member) -> None:
    """This user leaves; what was queued for it is dropped."""
    member.outbox.close()
    member.outbox.drop(b"", 0)
    backend.presence.leave(member)


def texts(*said: str) -> Run:
    """Messages as their receiver gets them."""
    return Run(b"".join(encode_message(text.encode()) for text in said), len(said))


def read(member: Member) -> bytes:
    """Everything that waits in this user's outbox; the kernel has it then."""
    stream = member.outbox.take()
    member.outbox.sent(len(stream))
    return stream
