"""A client of stress/target.py, in place of chatserver/transport/connection.py, without a socket and without a loop."""

from collections.abc import Callable

from chatserver.session import Session
from chatserver.transport import address
from chatserver.transport.outbox import PUT_BYTES, Outbox
from chatserver.transport.states import Output, OutputEvent
from chatserver.transport.turns import Turn
from protocol import MAX_PACKET_BYTES, Reason, encode_error, rest_of_packet
from stress import wire
from stress.peer import ModelClient

OUTBOX_BYTES = 1024  # less than one piece can cause, so that full outboxes occur
ORIGIN = address.ClientAddress("fuzz", "fuzz")


class Broken(Exception):
    """The server did something that the protocol does not allow."""


class FuzzClient:
    """A session, its outbox, and the client that reads it.

    The client reads at once. While it `holds`, it reads only when a sender waits for room; a `stubborn` one does not
    even read then, and is dropped. `gave_up` says when: after how many bytes other than notices, and whether in the
    middle of a packet.

    `said` are the notices that the server has put into the stream; `heard` are the bytes that the client has read.
    """

    def __init__(
        self, make_session: Callable[[Outbox, Callable[[Reason], None], address.ClientAddress], Session]
    ) -> None:
        self.peer = ModelClient()
        self.holds = False
        self.stubborn = False
        self.gave_up: tuple[int, bool] | None = None
        self.said: list[bytes] = []
        self.heard = b""
        self.outbox = Outbox(OUTBOX_BYTES, self._on_due, self._read_at_once)
        self.outbox.wait = self._make_room  # type: ignore[method-assign]  # nobody else could run meanwhile
        self.outbox.wait_in_line = self._make_room_for  # type: ignore[method-assign]
        self.session = make_session(self.outbox, self.close, ORIGIN)
        self._stream = b""  # taken from the outbox ...
        self._sent = 0  # ... of which so many bytes have been read
        self._at_once = 0  # bytes that were never queued
        self._notices = 0  # bytes of it that are notices ...
        self._all_notices = 0  # ... and of all that was ever taken
        self._replays = False

    # The server's side

    def close(self, reason: Reason) -> None:
        """Close with this Error; the client reads it and everything before it."""
        self.holds = False
        self.outbox.close(encode_error(reason))
        self.read()

    def drop(self) -> None:
        """Drop it as Too Slow: what waits is lost, except for the packet in flight."""
        if self.outbox.closed:
            return
        self.holds = True
        self.outbox.close(encode_error(Reason.TOO_SLOW))
        last = self.outbox.last_packet
        self._let_go(self._sent + len(rest_of_packet(self._stream, self._sent)), last)
        self.holds = False
        self.read()

    def cut_off(self) -> None:
        """The client becomes unreachable."""
        self.outbox.advance(OutputEvent.SEND_FAILED)
        self._let_go(self._sent)

    def end(self) -> None:
        """The client has left without reading on."""
        self.holds = True
        self.session.end()
        self._let_go(self._sent)
        if self.outbox.size:  # which marks count in, too
            raise Broken(f"{self.outbox.size} bytes are left of {self.peer}")

    def _let_go(self, end: int, last_packet: bytes = b"") -> None:
        self.outbox.drop(self._stream, end, len(last_packet))
        self._stream = self._stream[:end] + last_packet

    # The client's side

    def read(self) -> int:
        """Read everything; returns the number of bytes."""
        count = 0
        while some := self._unread():
            count += self._read(some)
        return count

    def read_some(self) -> None:
        """Read half of what is in flight."""
        self._read((self._unread() + 1) // 2)

    @property
    def has_begun(self) -> bool:
        """Whether it has read part of a packet other than a notice."""
        _, rest = wire.whole_packets(self.heard)
        return bool(rest) and rest[0] not in wire.NOTICES

    def take_packets(self) -> list[bytes]:
        """Remove and return the whole packets that it has read, except notices."""
        packets, self.heard = wire.whole_packets(self.heard)
        return [packet for packet in packets if packet[0] not in wire.NOTICES]

    def _make_room_for(self, turn: Turn) -> None:  # noqa: ARG002
        self._make_room()

    def _make_room(self) -> None:
        if self.stubborn:
            self.gave_up = self.outbox.stream_bytes + self._at_once - self._all_notices, self.has_begun
            self.drop()
        elif not self.read():
            raise Broken(f"somebody waits for ever, for {self.peer}")

    def _on_due(self) -> None:
        if not self.holds:
            self.read()

    def _read_at_once(self, packets: bytes) -> int:
        """Read what is sent without being queued: all of it, or half if the client holds."""
        count = len(packets) // 2 if self.holds else len(packets)
        self._split(packets)
        self.heard += packets[:count]
        if self.holds:
            self._stream, self._sent, self._notices = packets, count, 0
        else:
            self._at_once += count
        return count

    def _unread(self) -> int:
        """The bytes in flight; takes more from the outbox if there are none."""
        if self._sent == len(self._stream):
            self._stream, self._sent = self.outbox.take(), 0
            notices = [packet for packet in self._split(self._stream) if packet[0] in wire.NOTICES]
            self._notices = sum(map(len, notices))
            self._all_notices += self._notices
            self.said += notices
        return len(self._stream) - self._sent

    def _read(self, count: int) -> int:
        begin, self._sent = self._sent, self._sent + count
        if self.outbox.state not in (Output.UNREACHABLE, Output.ABANDONED):
            self.heard += self._stream[begin : self._sent]
        self.outbox.sent(count)
        return count

    def _split(self, stream: bytes) -> list[bytes]:
        """The packets of what was taken. No notice may come within a replay, or after an Error that closes."""
        packets, rest = wire.whole_packets(stream)
        if rest:
            raise Broken(f"half a packet: {rest!r}")
        if packets and self.outbox.last_packet and packets[-1] != self.outbox.last_packet:
            raise Broken(f"{packets[-1]!r} after {self.outbox.last_packet!r}")
        for packet in packets:
            if packet[0] == wire.HISTORY:
                self._replays = packet != wire.HISTORY_END
            elif self._replays and packet[0] in wire.NOTICES:
                raise Broken(f"{packet!r} within a replay")
        return packets

    def check_size(self) -> None:
        """Check the bound on memory."""
        most = OUTBOX_BYTES + PUT_BYTES + MAX_PACKET_BYTES + self._notices if self.holds else 0
        if self.outbox.size > most or not (self.holds or self.outbox.empty):
            raise Broken(f"{self.outbox.size} bytes are queued for {self.peer}")
