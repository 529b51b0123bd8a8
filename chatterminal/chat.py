"""What the program knows while it runs."""

import sys
import threading
from dataclasses import dataclass, field

from chatterminal.display import visible
from chatterminal.login import Credentials
from chatterminal.marks import Marks
from client import ChatClient


@dataclass
class Chat:
    """A person's session: it outlives the connections it needs."""

    account: Credentials
    interactive: bool  # at a terminal, not line by line
    client: ChatClient
    marks: Marks = field(default_factory=Marks)  # of what was sent on this connection
    has_mailboxes: bool = False  # the server has been seen to keep what is written to somebody who is away
    partner_id: int = 0  # who gets what is typed; 0 until one is chosen
    ids: dict[str, int] = field(default_factory=dict)  # of all whom we have heard of, by name
    failed: bool = False  # something could not be done
    lost: str = ""  # why the server will not have us back
    hinted: bool = False  # how to answer has been told
    leaving: threading.Event = field(default_factory=threading.Event)

    @property
    def partner(self) -> str:
        """What to call the partner; "" where there is none."""
        return self.name_of(self.partner_id) if self.partner_id else ""

    def name_of(self, user_id: int) -> str:
        """What to call this user, by all that we have heard."""
        ids = self.ids.copy()  # another thread may hear more
        return next((name for name, number in ids.items() if number == user_id), f"id {user_id}")


def complain(chat: Chat, text: str) -> None:
    chat.failed = True
    print(f"! {visible(text)}", file=sys.stderr)
