"""The status of sent messages: sent, stored, delivered, from their receipts (section 7.2)."""

from dataclasses import dataclass
from enum import Enum
from threading import Lock

from client import ReceiptReceived
from protocol import Level, Reason

REFUSALS = frozenset(  # Errors that answer a Message
    {Reason.USER_NOT_ONLINE, Reason.NO_CHAT_STARTED, Reason.MAILBOX_FULL, Reason.STORAGE_UNAVAILABLE}
)


class Stage(Enum):
    """How far a text has come: a mark, a word for it, and its meaning."""

    NOTHING = ("", "", "")
    SENT = ("…", "sent", "on its way")
    STORED = ("✓", "stored", "on the server's disk; waits there while your partner is offline")
    DELIVERED = ("✓✓", "delivered", "sent to your partner")
    REFUSED = ("!", "refused", "not delivered")

    def describe(self, count: int, encoding: str) -> str:
        """The mark, if the encoding has it, a count if above 1, and the word."""
        mark, word, _ = self.value
        try:
            mark.encode(encoding)
        except UnicodeEncodeError:
            mark = ""
        return " ".join(filter(None, (mark, str(count) if count > 1 else "", word)))

    @property
    def meaning(self) -> str:
        return self.value[2]


@dataclass(eq=False)
class _Text:
    """A text that is not delivered yet, with the numbers of its Messages that have not reached each level."""

    partner_id: int
    unstored: set[int]  # and undelivered
    undelivered: set[int]


class Marks:
    """The texts sent on one connection. One thread sends; others may report receipts and ask for the status."""

    def __init__(self) -> None:
        self._lock = Lock()  # guards what follows
        self._texts: list[_Text] = []
        self._stages: dict[int, Stage] = {}  # by partner: the last text's stage, while none waits
        self._sending = False
        self._early: list[ReceiptReceived] = []  # they may belong to the text being sent
        self._refusals = 0  # not yet matched to a text

    def begin(self) -> None:
        """A text is about to be sent."""
        with self._lock:
            self._sending = True

    def end(self, partner_id: int, numbers: range) -> None:
        """The text was sent as Messages with these numbers; none if nothing was sent."""
        with self._lock:
            if numbers:
                self._texts.append(_Text(partner_id, set(numbers), set(numbers)))
                self._stages.pop(partner_id, None)
            for receipt in self._early:
                self._apply(receipt)
            self._early.clear()
            self._sending = False
            self._settle()

    def reach(self, receipt: ReceiptReceived) -> None:
        """Handle a receipt."""
        with self._lock:
            if self._sending:
                self._early.append(receipt)
            self._apply(receipt)
            self._settle()

    def refuse(self, reason: str) -> None:
        """Handle an Error, which may refuse a Message."""
        with self._lock:
            if reason in REFUSALS and (self._sending or self._unconfirmed()):
                self._refusals += 1
                self._settle()

    def stage(self, partner_id: int) -> tuple[Stage, int]:
        """The stage of the slowest text to this partner, and how many texts are at that stage."""
        with self._lock:
            texts = [text for text in self._texts if text.partner_id == partner_id]
            if sent := sum(bool(text.unstored) for text in texts):
                return Stage.SENT, sent
            if texts:
                return Stage.STORED, len(texts)
            return self._stages.get(partner_id, Stage.NOTHING), 1

    @property
    def unconfirmed(self) -> int:
        """How many texts are not known to be stored or delivered."""
        with self._lock:
            return len(self._unconfirmed_texts())

    def _unconfirmed_texts(self) -> list[_Text]:
        return [text for text in self._texts if text.unstored]

    def _unconfirmed(self) -> int:
        return sum(len(text.unstored) for text in self._texts)

    def _apply(self, receipt: ReceiptReceived) -> None:
        for text in self._texts:
            text.unstored -= _between(text.unstored, receipt)
            if receipt.level == Level.DELIVERED:
                text.undelivered -= _between(text.undelivered, receipt)
        self._finish([text for text in self._texts if not text.undelivered], Stage.DELIVERED)

    def _settle(self) -> None:
        """An Error does not say which Message it refuses; in the end those without a receipt were refused."""
        if self._refusals and not self._sending and self._unconfirmed() <= self._refusals:
            self._finish(self._unconfirmed_texts(), Stage.REFUSED)
            self._refusals = 0

    def _finish(self, texts: list[_Text], stage: Stage) -> None:
        for text in texts:
            self._texts.remove(text)
            if self._stages.get(text.partner_id) is not Stage.REFUSED:  # it stays until the next text
                self._stages[text.partner_id] = stage


def _between(numbers: set[int], receipt: ReceiptReceived) -> set[int]:
    """The numbers within the receipt's range, which may be far larger."""
    return {number for number in numbers if receipt.first <= number <= receipt.last}
