"""How far what one wrote has come: sent, stored, delivered, by the receipts for it (section 7.2)."""

from dataclasses import dataclass
from enum import Enum
from threading import Lock

from client import ReceiptReceived
from protocol import Level, Reason

REFUSALS = frozenset(  # what answers a Message
    {Reason.USER_NOT_ONLINE, Reason.NO_CHAT_STARTED, Reason.MAILBOX_FULL, Reason.STORAGE_UNAVAILABLE}
)


class Stage(Enum):
    """How far texts have come: a mark, the word for it, and what it means."""

    NOTHING = ("", "", "")
    SENT = ("…", "sent", "on its way")
    STORED = ("✓", "stored", "on the server's disk; waits there if your partner is away")
    DELIVERED = ("✓✓", "delivered", "sent on to your partner")
    REFUSED = ("!", "refused", "not delivered")

    def describe(self, count: int, encoding: str) -> str:
        """In few words, with the mark where the encoding has it."""
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
    """One that is not delivered yet: the numbers of its Messages, without those that have come so far."""

    partner_id: int
    unstored: set[int]  # and undelivered
    undelivered: set[int]


class Marks:
    """What was sent on one connection. One thread sends, others may report what they hear and ask."""

    def __init__(self) -> None:
        self._lock = Lock()  # guards what follows
        self._texts: list[_Text] = []
        self._stages: dict[int, Stage] = {}  # by partner: what has become of the last text, when none waits
        self._sending = False
        self._early: list[ReceiptReceived] = []  # that may be for the text which is being sent
        self._refusals = 0  # that we cannot tell the text of yet

    def begin(self) -> None:
        """A text is about to be sent."""
        with self._lock:
            self._sending = True

    def end(self, partner_id: int, numbers: range) -> None:
        """It has been sent, as Messages of these numbers: none where nothing went out."""
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
        """Messages have come so far."""
        with self._lock:
            if self._sending:
                self._early.append(receipt)
            self._apply(receipt)
            self._settle()

    def refuse(self, reason: str) -> None:
        """An Error came, which answers some Message if it can."""
        with self._lock:
            if reason in REFUSALS and (self._sending or self._unconfirmed()):
                self._refusals += 1
                self._settle()

    def stage(self, partner_id: int) -> tuple[Stage, int]:
        """How far the texts to this partner have come, the slowest one first, and how many have come no farther."""
        with self._lock:
            texts = [text for text in self._texts if text.partner_id == partner_id]
            if sent := sum(bool(text.unstored) for text in texts):
                return Stage.SENT, sent
            if texts:
                return Stage.STORED, len(texts)
            return self._stages.get(partner_id, Stage.NOTHING), 1

    @property
    def unconfirmed(self) -> int:
        """How many texts are neither stored nor delivered, as far as we know."""
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
        """An Error does not say which Message it answers, but in the end those without a receipt are the refused."""
        if self._refusals and not self._sending and self._unconfirmed() <= self._refusals:
            self._finish(self._unconfirmed_texts(), Stage.REFUSED)
            self._refusals = 0

    def _finish(self, texts: list[_Text], stage: Stage) -> None:
        for text in texts:
            self._texts.remove(text)
            if self._stages.get(text.partner_id) is not Stage.REFUSED:  # which the next text takes away
                self._stages[text.partner_id] = stage


def _between(numbers: set[int], receipt: ReceiptReceived) -> set[int]:
    """Those of the numbers that the receipt is for; its range may be far larger."""
    return {number for number in numbers if receipt.first <= number <= receipt.last}
