"""A client of stress/target.py, in place of chatserver/transport/connection.py, without a socket and without a loop."""

from collections.abc import Callable

from chatserver.session import Session
from chatserver.transport import address
from chatserver.transport.outbox import PUT_BYTES, Outbox
from chatserver.transport.states import Output, OutputEvent
from protocol import MAX_PACKET_BYTES, Reason, encode_error, rest_of_packet
from stress import wire
from stress.peer import ModelClient

OUTBOX_BYTES = 1024  # less than what a piece can cause, so that the way for a full outbox is taken too
ORIGIN = address.ClientAddress("fuzz", "fuzz")


class Broken(Exception):
    """The server did what the protocol does not say."""


class FuzzClient:
    """A session, its outbox, and who reads that: at once; or, while it `holds`, only when somebody waits for room; or
    not even then, if it is `stubborn`, and is dropped. `gave_up` is when: after how many bytes that are no notices, and
    whether in the middle of a packet.

    `said` are the notices that the server has taken for its stream, as they stand then; `heard` are the bytes that the
    client has got.
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
        self.outbox = Outbox(OUTBOX_BYTES, self._on_due)
        self.outbox._wait = self._make_room  # type: ignore[method-assign]  # nobody else could run meanwhile
        self.session = make_session(self.outbox, self.close, ORIGIN)
        self._stream = b""  # taken from the outbox ...
        self._sent = 0  # ... of which so many bytes have been read
        self._notices = 0  # bytes of it that are notices ...
        self._all_notices = 0  # ... and of all that was ever taken
        self._replays = False

    # What the server does with its connection

    def close(self, reason: Reason) -> None:
        """End it with this Error, which is read, with all that came before."""
        self.holds = False
        self.outbox.close(encode_error(reason))
        self.read()

    def drop(self) -> None:
        """End it as Too Slow: what waits is lost, but for the packet that has been begun."""
        if self.outbox.closed:
            return
        self.holds = True
        self.outbox.close(encode_error(Reason.TOO_SLOW))
        last = self.outbox.last_packet
        self._let_go(self._sent + len(rest_of_packet(self._stream, self._sent)), last)
        self.holds = False
        self.read()

    def cut_off(self) -> None:
        """The client cannot be reached any more."""
        self.outbox.advance(OutputEvent.SEND_FAILED)
        self._let_go(self._sent)

    def end(self) -> None:
        """It has gone, and has read no more."""
        self.holds = True
        self.session.end()
        self._let_go(self._sent)
        if self.outbox.size or self.outbox._marks:
            raise Broken(f"{self.outbox.size} bytes and {self.outbox._marks} are left of {self.peer}")

    def _let_go(self, end: int, last_packet: bytes = b"") -> None:
        self.outbox.drop(self._stream, end, len(last_packet))
        self._stream = self._stream[:end] + last_packet

    # What the client does

    def read(self) -> int:
        """Read all there is; returns how many bytes that was."""
        count = 0
        while some := self._unread():
            count += self._read(some)
        return count

    def read_some(self) -> None:
        """Read half of what is in flight."""
        self._read((self._unread() + 1) // 2)

    @property
    def has_begun(self) -> bool:
        """Whether it has a part of a packet that is no notice."""
        _, rest = wire.whole_packets(self.heard)
        return bool(rest) and rest[0] not in wire.NOTICES

    def take_packets(self) -> list[bytes]:
        """What it has heard, in whole packets, but for notices."""
        packets, self.heard = wire.whole_packets(self.heard)
        return [packet for packet in packets if packet[0] not in wire.NOTICES]

    def _make_room(self) -> None:
        if self.stubborn:
            self.gave_up = self.outbox.stream_bytes - self._all_notices, self.has_begun
            self.drop()
        elif not self.read():
            raise Broken(f"somebody waits for ever, for {self.peer}")

    def _on_due(self) -> None:
        if not self.holds:
            self.read()

    def _unread(self) -> int:
        """Bytes in flight; more are taken when there are none."""
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
        """The packets of what was taken; no notice may be within a replay, or after the Error that closes."""
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
        """Memory is bounded."""
        most = OUTBOX_BYTES + PUT_BYTES + MAX_PACKET_BYTES + self._notices if self.holds else 0
        if self.outbox.size > most or not (self.holds or self.outbox.empty):
            raise Broken(f"{self.outbox.size} bytes are queued for {self.peer}")
