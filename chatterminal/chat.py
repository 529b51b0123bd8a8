"""The state of the program while it runs."""

import sys
import threading
from dataclasses import dataclass, field

from chatterminal.crowd import Crowd
from chatterminal.display import visible
from chatterminal.login import Credentials
from chatterminal.marks import Marks
from client import ChatClient


@dataclass
class Chat:
    """A person's chat: it outlives single connections."""

    account: Credentials
    interactive: bool  # at a terminal, not line by line
    client: ChatClient
    marks: Marks = field(default_factory=Marks)  # status of the messages sent on this connection
    has_mailboxes: bool = False  # the server has shown that it stores messages for offline users
    partner_id: int = 0  # receiver of what is typed; 0 until one is chosen
    crowd: Crowd = field(default_factory=Crowd)  # of arrivals and departures
    is_quiet: bool = False  # shows no arrivals and departures
    muted: dict[str, int] = field(default_factory=dict)  # how many messages of these users were not shown, by name
    ids: dict[str, int] = field(default_factory=dict)  # of all known users, by name
    failed: bool = False  # a command or message failed
    is_new: bool = False  # signed up again by reconnecting: the person is asked whether that is meant
    lost: str = ""  # why the server refuses to let us in again
    hinted: bool = False  # the hint on how to answer was shown
    leaving: threading.Event = field(default_factory=threading.Event)

    @property
    def partner(self) -> str:
        """The partner's name, or "" without a partner."""
        return self.name_of(self.partner_id) if self.partner_id else ""

    def name_of(self, user_id: int) -> str:
        """This user's name, or "id N" if it is not known."""
        ids = self.ids.copy()  # another thread may add to it
        return next((name for name, number in ids.items() if number == user_id), f"id {user_id}")


def complain(chat: Chat, text: str) -> None:
    chat.failed = True
    print(f"! {visible(text)}", file=sys.stderr)
