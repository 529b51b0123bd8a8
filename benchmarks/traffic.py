"""The generator: it sends prepared buffers, and compares each byte that it receives with the expected one.

It is one thread on epoll. Every message of a client differs from its neighbours and from those of other clients, so a
lost, duplicated, reordered or misdelivered one is found, and ends the run.
"""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from benchmarks.dialects import BenchmarkClient, Dialect, WrongAnswer

CYCLE = 512  # different messages of a sender, sent again and again; also the most in flight
CHUNK_BYTES = 65536
STALL_SECONDS = 20.0
OVERSLEEP_SECONDS = 100e-6  # by which a sleeper wakes up late
QUIET_SECONDS = 0.05  # at the end, during which nothing more may arrive
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Load:
    """How many messages were delivered in what time, and how busy the generator was."""

    messages: int
    seconds: float
    generator_share: float  # of one core


@dataclass(slots=True, eq=False)
class Flow:
    """Messages from one client to another, all of one size. `sent` and `received` are bytes since the beginning."""

    number: int
    sender: socket.socket
    receiver: socket.socket
    out: memoryview  # a cycle of messages as they are sent
    expected: memoryview  # the cycle as it arrives, repeated so that a chunk fits from any place in it
    out_bytes: int  # of one message
    in_bytes: int
    cycle: int  # messages
    is_blocked: bool = False  # the kernel's buffer is full
    wanted: int = 0  # messages to be sent by now
    sent: int = 0
    received: int = 0
    due: deque[float] = field(default_factory=deque)  # times of the messages in flight, if latency is measured

    @property
    def arrived(self) -> int:
        """How many messages have arrived completely."""
        return self.received // self.in_bytes

    def push(self, messages: int = 0) -> bool:
        """Send what is wanted, and this many messages more; False while the kernel's buffer is full."""
        self.wanted += messages
        end = self.wanted * self.out_bytes
        while self.sent < end:
            at = self.sent % len(self.out)
            try:
                self.sent += self.sender.send(self.out[at : at + end - self.sent])
            except WOULD_BLOCK:
                return False
        return True

    def take(self) -> int:
        """Receive and compare a chunk; returns how many messages it completes. Raises WrongAnswer."""
        before = self.arrived
        try:
            data = self.receiver.recv(CHUNK_BYTES)
        except WOULD_BLOCK:
            return 0
        at = self.received % (self.cycle * self.in_bytes)
        self.received += len(data)
        is_too_much = self.received > self.wanted * self.in_bytes
        if not data or data != self.expected[at : at + len(data)] or is_too_much:
            raise WrongAnswer(f"receiver {self.number} got {data[:200]!r}, not {bytes(self.expected[at : at + 200])!r}")
        return self.arrived - before


def flows(
    dialect: Dialect, pairs: Sequence[tuple[BenchmarkClient, BenchmarkClient]], text_bytes: int, cycle: int = CYCLE
) -> list[Flow]:
    """A flow for each pair of clients, whose sockets become non-blocking."""
    made = []
    for number, (sender, receiver) in enumerate(pairs):
        texts = [f"{sender.name}{at:06}".encode().ljust(text_bytes, b".") for at in range(cycle)]
        out = [dialect.sent(sender, receiver, text) for text in texts]
        expected = [dialect.received(sender, receiver, text) for text in texts]
        if {len(text) for text in texts} != {text_bytes}:
            raise ValueError(f"{text_bytes} bytes are too few to tell messages apart")
        for client in (sender, receiver):
            client.sock.setblocking(False)
        once = b"".join(expected)
        buffers = memoryview(b"".join(out)), memoryview(once * (2 + CHUNK_BYTES // len(once)))
        made.append(Flow(number, sender.sock, receiver.sock, *buffers, len(out[0]), len(expected[0]), cycle))
    return made


def pipelined(streams: Sequence[Flow], seconds: float) -> Load:
    """One way, as fast as possible: half a cycle to a whole one is in flight in each flow."""
    with _watched(streams) as (poller, senders, receivers):
        left = len(streams)
        clock = _Clock(seconds)
        for flow in streams:
            _push(poller, flow, CYCLE)
        while left:
            goes_on = clock.goes_on()
            for number, event in _wait(poller, streams):
                flow = receivers.get(number) or senders[number]
                if number in senders:
                    _no_input(event, flow)
                    _push(poller, flow)
                elif flow.take():
                    if goes_on and flow.wanted - flow.arrived <= CYCLE // 2:
                        _push(poller, flow, CYCLE // 2)
                    left -= flow.arrived == flow.wanted
        load = clock.load(sum(flow.arrived for flow in streams))
        _expect_silence(poller)
    return load


def ping_pong(there: Sequence[Flow], back: Sequence[Flow], seconds: float) -> Load:
    """One message in flight for each pair: the receiver answers it."""
    replies = dict(zip([*there, *back], [*back, *there], strict=True))
    with _watched([*there, *back]) as (poller, _, receivers):
        left = len(there)
        clock = _Clock(seconds)
        for flow in there:
            flow.push(1)
        while left:
            goes_on = clock.goes_on()
            for number, _event in _wait(poller, there):
                flow = receivers[number]
                if flow.take():
                    if goes_on:
                        replies[flow].push(1)
                    else:
                        left -= 1
        load = clock.load(sum(flow.arrived for flow in replies))
        _expect_silence(poller)
    return load


def open_arrival(streams: Sequence[Flow], rate: float, seconds: float) -> tuple[Load, list[float]]:
    """`rate` messages a second at random moments, the same in each run. Returns also the latencies in seconds, each
    from when its message was due. Shortly before that the generator polls, since it would wake up late from sleep.
    """
    times: list[float] = []
    draw = Random(1)
    with _watched(streams) as (poller, senders, receivers):
        clock = _Clock(seconds)
        due = clock.begin
        is_open = True
        while is_open or len(times) < sum(flow.wanted for flow in streams):
            now = time.perf_counter()
            while is_open and due <= now:
                flow = draw.choice(streams)
                flow.due.append(due)
                _push(poller, flow, 1)
                due += draw.expovariate(rate)
                is_open = due < clock.end
            for number, event in _look(poller, due if is_open else clock.end + STALL_SECONDS):
                if number in senders:
                    _no_input(event, senders[number])
                    _push(poller, senders[number])
                else:
                    flow = receivers[number]
                    arrived, now = flow.take(), time.perf_counter()
                    times += [now - flow.due.popleft() for _ in range(arrived)]
            if now > clock.end + STALL_SECONDS:
                raise WrongAnswer("messages do not arrive")
        load = clock.load(len(times))
        _expect_silence(poller)
    return load, times


class _Clock:
    """How long a run lasts, and the generator's CPU time."""

    def __init__(self, seconds: float) -> None:
        self.begin = time.perf_counter()
        self.end = self.begin + seconds
        self._cpu = time.thread_time()

    def goes_on(self) -> bool:
        return time.perf_counter() < self.end

    def load(self, messages: int) -> Load:
        seconds = time.perf_counter() - self.begin
        return Load(messages, seconds, (time.thread_time() - self._cpu) / seconds)


@contextmanager
def _watched(streams: Sequence[Flow]) -> Iterator[tuple[select.epoll, dict[int, Flow], dict[int, Flow]]]:
    """The poller, the flows by receiver's socket, and the flows by sender's if that sender receives nothing."""
    receivers = {flow.receiver.fileno(): flow for flow in streams}
    senders = {flow.sender.fileno(): flow for flow in streams if flow.sender.fileno() not in receivers}
    with select.epoll() as poller:
        for number in [*receivers, *senders]:
            poller.register(number, select.EPOLLIN)
        yield poller, senders, receivers


def _push(poller: select.epoll, flow: Flow, messages: int = 0) -> None:
    """Flow.push, and watch for room if the kernel's buffer is full."""
    was_blocked, flow.is_blocked = flow.is_blocked, not flow.push(messages)
    if flow.is_blocked != was_blocked:
        events = select.EPOLLIN | select.EPOLLOUT if flow.is_blocked else select.EPOLLIN
        poller.modify(flow.sender.fileno(), events)


def _wait(poller: select.epoll, streams: Sequence[Flow]) -> list[tuple[int, int]]:
    if ready := poller.poll(STALL_SECONDS):
        return ready
    state = [f"{flow.arrived} of {flow.wanted}" for flow in streams if flow.arrived < flow.wanted]
    raise WrongAnswer(f"nothing has arrived for {STALL_SECONDS:.0f} s; in flight: {', '.join(state[:5])}")


def _look(poller: select.epoll, due: float) -> list[tuple[int, int]]:
    """Wait for events, until shortly before `due`."""
    wait = due - time.perf_counter() - OVERSLEEP_SECONDS
    if wait > 0:
        select.select([poller], [], [], wait)  # select counts in microseconds, epoll in milliseconds
    return poller.poll(0)


def _no_input(event: int, flow: Flow) -> None:
    if event & ~select.EPOLLOUT:
        try:
            raise WrongAnswer(f"sender {flow.number} received {flow.sender.recv(200)!r}")
        except WOULD_BLOCK:
            return


def _expect_silence(poller: select.epoll) -> None:
    if late := poller.poll(QUIET_SECONDS):
        raise WrongAnswer(f"{len(late)} clients received more than was sent")
