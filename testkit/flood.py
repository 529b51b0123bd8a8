"""A sender that outpaces its reader."""

from protocol import Envelope, encode_message
from testkit.processes import DEADLINE
from testkit.server import ServerProcess
from testkit.wire import Wire

BIG = encode_message(b"x" * 100)
RELAYED_BIG = Envelope("sender").wrap(b"x" * 100)
PUSH_BYTES = 65536  # however small the packet: the flood must fill the outbox before --write-timeout on a busy machine


class Flood:
    """Sends one packet over and over, as far as the server reads, and can end on a packet boundary."""

    def __init__(self, client: Wire, packet: bytes) -> None:
        self._client = client
        self._packet = packet
        self._many = packet * (PUSH_BYTES // len(packet))
        self._sent = 0

    def push(self, timeout: float = 0.0) -> bool:
        """Send some more; False if the server accepts nothing for `timeout` seconds."""
        self._client.socket.settimeout(timeout)
        try:
            self._sent += self._client.socket.send(self._many[self._sent % len(self._packet) :])
        except (TimeoutError, BlockingIOError):
            return False
        finally:
            self._client.socket.settimeout(DEADLINE)
        return True

    def until_stuck(self, timeout: float) -> None:
        """Send until the server accepts nothing for `timeout` seconds."""
        while self.push(timeout):
            pass

    def end(self, after: bytes = b"") -> int:
        """Complete the last packet and send `after`; returns how many packets the flood has sent."""
        rest = -self._sent % len(self._packet)
        self._client.send(self._packet[len(self._packet) - rest :], after)
        return (self._sent + rest) // len(self._packet)


def stuck_pair(server: ServerProcess, timeout: float = 0.5) -> tuple[Wire, Wire, Flood]:
    """Two users: "reader", who reads nothing, and "sender", whose flood of BIG to the reader is stuck by now."""
    reader, sender = server.log_in("reader"), server.log_in("sender")
    sender.chat_with(reader.users["reader"])
    flood = Flood(sender, BIG)
    flood.until_stuck(timeout)
    return reader, sender, flood
