"""Requests between nodes, over Redis's publish and subscribe.

Redis stores none of them: a node repeats a request until the other node answers or has failed, and the other node
executes it once. All frames of one turn of the loop for one node go as one message, all messages in one write.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

import gevent
from gevent.hub import Waiter

from chatserver.people.presence import Member
from chatserver.transport.turns import Turn
from cluster.directory import Directory
from cluster.frames import Answer, Flush, Frame, HandOver, Reached, decode, encode_head
from cluster.presence import ClusterPresence
from protocol import Level, Reason, Run

# An answer to a single Message waits so long for other frames: of two clients who take turns, the other one writes back
# soon, and both frames go in one message. The sender that waits for the answer has just sent something.
LATER_SECONDS = 0.001
NOT_HERE = Answer(0, 0, False, Reason.USER_NOT_ONLINE)
AWAY = Answer(0, 0, True, Reason.STORAGE_UNAVAILABLE)

Publish: TypeAlias = Callable[[list[tuple[str, bytes]]], None]  # of (node, message); never waits

log = logging.getLogger("chat")


@dataclass(slots=True, eq=False)
class Question:
    """A request that another node has not answered yet."""

    node: str
    frame: bytes
    waiter: "Waiter[Answer]"
    asked: float  # by time.monotonic()


class RemoteReceipts:
    """A ReceiptSink for a connection at another node: reports to that node."""

    def __init__(self, bus: "Bus", node: str, user_id: int, connection: int) -> None:
        self.connection = connection
        self._bus = bus
        self._node = node
        self._user_id = user_id

    def reach(self, level: Level, first: int, last: int) -> None:
        self._bus.tell(self._node, Reached(self._user_id, self.connection, level, first, last))


@dataclass(slots=True)
class RemoteSender:
    """A Sender at another node."""

    user_id: int
    mails: bool
    receipts: RemoteReceipts | None
    turn: Turn = field(default_factory=Turn)

    def wait_for_receipts(self) -> None:
        """Its own node throttles it."""


class Bus:
    """One node's end of the bus. `take_over` and `flush` execute requests of other nodes and may wait.

    `is_at_once` says whether a HandOver will not wait.
    """

    def __init__(self, presence: ClusterPresence, directory: Directory) -> None:
        self.take_over: Callable[[RemoteSender, HandOver], tuple[int, Reason] | None]
        self.is_at_once: Callable[[HandOver], bool]
        self.flush: Callable[[], None] = lambda: None
        self._publish: Publish | None = None
        self._presence = presence
        self._directory = directory
        self._next_id = 1
        self._questions: dict[int, Question] = {}  # by id
        # By node and sender: the id of the last question and, once there is one, its answer. A sender asks one question
        # at a time. A repeated question gets the same answer again; a late copy of an older one is ignored.
        self._answers: defaultdict[str, dict[int, tuple[int, Answer | None]]] = defaultdict(dict)
        self._frames: defaultdict[str, list[bytes]] = defaultdict(list)  # by node, for this turn of the loop
        self._later: defaultdict[str, list[bytes]] = defaultdict(list)  # ... or when LATER_SECONDS are over
        self._loop = gevent.get_hub().loop
        self._timer = self._loop.timer(LATER_SECONDS)
        self._timer_runs = False
        presence.on_gone = self.forget
        presence.on_left = lambda node, user_id: self._answers[node].pop(user_id, None)

    @property
    def is_open(self) -> bool:
        """Whether Redis can be reached."""
        return self._publish is not None

    def open(self, publish: Publish) -> None:
        """Redis can be reached: send what has waited."""
        self._publish = publish
        self.ask_again()
        self._send()

    def close(self) -> None:
        """Redis is away: keep what is to be sent."""
        self._publish = None

    # Asking

    def hand_over(self, node: str, sender: Member, receiver: int, run: Run, first: int) -> Answer:
        """Hand Messages over to a user of another node; waits until they are queued there or refused."""
        connection = sender.receipts.connection if sender.receipts else 0
        return self._ask(node, HandOver(self._new_id(), sender.user_id, receiver, sender.mails, connection, first, run))

    def flush_chats(self, node: str, user_id: int) -> None:
        """Make another node write all its waiting chats, for this user of ours; waits until it has."""
        self._ask(node, Flush(self._new_id(), user_id))

    def tell(self, node: str, frame: Frame) -> None:
        """Send a frame that needs no answer. Never waits."""
        self._queue(node, frame.encode())

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _ask(self, node: str, frame: HandOver | Flush) -> Answer:
        if self._publish is None:
            return AWAY
        question = Question(node, frame.encode(), Waiter(), time.monotonic())
        self._questions[frame.id] = question
        self._queue(node, question.frame)
        try:
            return question.waiter.get()
        finally:
            self._questions.pop(frame.id, None)  # in case this greenlet was killed

    def ask_again(self, node: str = "", asked_before: float = inf) -> None:
        """Repeat the questions that this node, or any node, has not answered. Never waits."""
        for question in self._questions.values():
            if node in ("", question.node) and question.asked < asked_before:
                self._queue(question.node, question.frame)

    def settle(self, answer: Answer, node: str = "") -> None:
        """Give this answer to all open questions to this node, or to any node. Never waits."""
        for id_ in [id_ for id_, question in self._questions.items() if node in ("", question.node)]:
            self._settle(answer._replace(id=id_))

    def _settle(self, answer: Answer) -> None:
        """Deliver an answer; the first one counts."""
        if question := self._questions.pop(answer.id, None):
            self._loop.run_callback(question.waiter.switch, answer)

    def forget(self, node: str) -> None:
        """This node has failed or left: whether it executed its requests is unknown."""
        self.settle(NOT_HERE, node)
        self._answers.pop(node, None)

    def keep_only(self, nodes: Collection[str]) -> None:
        """All other nodes have failed or left."""
        for node in {question.node for question in self._questions.values()}.union(self._answers).difference(nodes):
            self.forget(node)

    # Requests of other nodes

    def receive(self, message: bytes) -> None:
        """Handle a message from another node. Never waits."""
        (node, clock), frames = decode(message)
        self._directory.clock.hear(clock)
        for frame in frames:
            match frame:
                case Answer():
                    self._settle(frame)
                case Reached(user_id, connection, level, first, last):
                    member = self._presence.here.get(user_id)
                    if member and member.receipts and member.receipts.connection == connection:
                        member.receipts.reach(level, first, last)
                case _:
                    self._answer(node, frame)

    def _answer(self, node: str, frame: HandOver | Flush) -> None:
        last_id, answer = self._answers[node].get(frame.sender, (0, None))
        if frame.id > last_id:
            self._answers[node][frame.sender] = frame.id, None
            if isinstance(frame, HandOver) and self.is_at_once(frame):
                self._do(node, frame)
            else:
                gevent.spawn(self._do, node, frame)
        elif frame.id == last_id and answer:
            self.tell(node, answer)

    def _do(self, node: str, frame: HandOver | Flush) -> None:
        try:
            answer = self._hand_on(node, frame) if isinstance(frame, HandOver) else self._flush(frame)
        except Exception:
            log.exception("internal error in a request of another node")
            answer = AWAY._replace(id=frame.id)
        if self._answers[node].get(frame.sender) == (frame.id, None):
            self._answers[node][frame.sender] = frame.id, answer
        if isinstance(frame, HandOver) and frame.run.messages == 1:
            self._queue_for_later(node, answer.encode())
        else:
            self.tell(node, answer)

    def _flush(self, frame: Flush) -> Answer:
        self.flush()
        return Answer(frame.id, 0, True, Reason.USER_NOT_ONLINE)

    def _hand_on(self, node: str, frame: HandOver) -> Answer:
        if frame.receiver not in self._presence.here or self._presence.node_of(frame.sender) != node:
            return NOT_HERE._replace(id=frame.id)
        receipts = RemoteReceipts(self, node, frame.sender, frame.connection) if frame.connection else None
        sender = RemoteSender(frame.sender, frame.mails, receipts)
        if done := self.take_over(sender, frame):
            return Answer(frame.id, done[0], True, done[1])
        return NOT_HERE._replace(id=frame.id)

    # Sending

    def _queue(self, node: str, frame: bytes) -> None:
        if not self._frames:
            self._loop.run_callback(self._send)
        self._frames[node].append(frame)

    def _queue_for_later(self, node: str, frame: bytes) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self._timer.start(self._send_later)
        self._later[node].append(frame)

    def _send(self) -> None:
        """Send the frames of this turn of the loop. Runs in the hub. While Redis is away they wait; they are few, since
        nodes do nothing for each other meanwhile.
        """
        if self._publish is None:
            return
        frames, self._frames = self._frames, defaultdict(list)
        head = encode_head(self._directory.node, self._directory.clock.now)
        later = self._later
        self._publish([(node, b"".join((head, *parts, *later.pop(node, ())))) for node, parts in frames.items()])

    def _send_later(self) -> None:
        """Runs in the hub."""
        self._timer_runs = False
        self._timer.stop()
        later, self._later = self._later, defaultdict(list)
        for node, frames in later.items():
            self._queue(node, b"".join(frames))
