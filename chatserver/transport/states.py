"""The life of a connection: a state for each direction, and a table of which event leads from which state to which.

An event that the table does not list for a state is a no-op there: only the first close counts, and only the first
failed send. What each state allows:

Input     may read                          what ends the state
OPEN      the session                       the client closes; stop_reading(); the session fails
STOPPED   nobody; the session handles on    all that was read is handled; a last read finds that the client has closed
UNREAD    finish(), which discards          the client closes
ENDED     nobody                            -

Output       may put                 may send                                     what ends the state
OPEN         the session and others  hub or writer                                close(); a failed send
UNREACHABLE  nobody                  nobody; the session still handles input      close()
CLOSING      nobody                  hub, writer or finish(): what is queued      half-close; no progress; a failed send
TRUNCATED    nobody                  writer or finish(): packet in flight, Error  half-close; a failed send
ABANDONED    nobody                  nobody                                       half-close
HALF_CLOSED  nobody                  nobody                                       finish() closes the socket
CLOSED       nobody                  nobody                                       -

They are strings, because Python hashes those fast; an Enum's own hash is a call for each look-up.

finish() also closes the socket where half-closing fails. One of three sends at a time: the hub; the writer greenlet,
while the client is slow; finish(), once the session is over.
"""

from enum import StrEnum


class Input(StrEnum):
    """What a connection receives."""

    OPEN = "the session reads"
    STOPPED = "nobody reads; the session still handles what it has read"
    UNREAD = "the session has handled all that was read; the client may still send"
    ENDED = "the client has closed its side"


class InputEvent(StrEnum):
    """What can happen to the input."""

    STOP = "the server wants no more of it"
    HANDLED = "the session has handled all that it read, or failed"
    CLIENT_CLOSED = "the end of the stream was read"


INPUT: dict[tuple[Input, InputEvent], Input] = {
    (Input.OPEN, InputEvent.STOP): Input.STOPPED,
    (Input.OPEN, InputEvent.HANDLED): Input.UNREAD,
    (Input.OPEN, InputEvent.CLIENT_CLOSED): Input.ENDED,
    (Input.STOPPED, InputEvent.HANDLED): Input.UNREAD,
    (Input.STOPPED, InputEvent.CLIENT_CLOSED): Input.ENDED,
    (Input.UNREAD, InputEvent.CLIENT_CLOSED): Input.ENDED,
}


class Output(StrEnum):
    """What a connection sends."""

    OPEN = "takes packets and sends them"
    UNREACHABLE = "a send has failed: takes and sends nothing; the session still handles what the client sent before"
    CLOSING = "takes nothing more, and sends what is queued"
    TRUNCATED = "the client takes nothing: sends only the rest of the packet in flight and the last packet"
    ABANDONED = "closed, and a send has failed: nothing goes out any more"
    HALF_CLOSED = "the client has been sent the end of the stream"
    CLOSED = "the socket is closed"


class OutputEvent(StrEnum):
    """What can happen to the output."""

    CLOSE = "the session is over, or the server ends the connection"
    SEND_FAILED = "the client cannot be reached"
    NO_PROGRESS = "the client has taken nothing for as long as it may"
    HALF_CLOSE = "the socket's sending side has been shut down"
    SOCKET_CLOSED = "the socket has been closed"


OUTPUT: dict[tuple[Output, OutputEvent], Output] = {
    (Output.OPEN, OutputEvent.CLOSE): Output.CLOSING,
    (Output.OPEN, OutputEvent.SEND_FAILED): Output.UNREACHABLE,
    (Output.UNREACHABLE, OutputEvent.CLOSE): Output.ABANDONED,
    (Output.CLOSING, OutputEvent.NO_PROGRESS): Output.TRUNCATED,
    (Output.CLOSING, OutputEvent.SEND_FAILED): Output.ABANDONED,
    (Output.CLOSING, OutputEvent.HALF_CLOSE): Output.HALF_CLOSED,
    (Output.CLOSING, OutputEvent.SOCKET_CLOSED): Output.CLOSED,
    (Output.TRUNCATED, OutputEvent.SEND_FAILED): Output.ABANDONED,
    (Output.TRUNCATED, OutputEvent.HALF_CLOSE): Output.HALF_CLOSED,
    (Output.TRUNCATED, OutputEvent.SOCKET_CLOSED): Output.CLOSED,
    (Output.ABANDONED, OutputEvent.HALF_CLOSE): Output.HALF_CLOSED,
    (Output.ABANDONED, OutputEvent.SOCKET_CLOSED): Output.CLOSED,
    (Output.HALF_CLOSED, OutputEvent.SOCKET_CLOSED): Output.CLOSED,
}
