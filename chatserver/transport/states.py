"""The life of a connection: one state for each direction, and a table of what leads from state to state.

An event that the table does not list for a state is a no-op there: the first close counts, and so does the first failed
send. What each state allows:

Input     may read                what ends the state
OPEN      the session             the client closes; stop_reading(); the session fails
STOPPED   nobody                  the session has handled what was read, or finds that the client had closed
UNREAD    finish(), to discard    the client closes, or finish() waits no longer
ENDED     nobody, nothing comes   -

Output       may put           may send                          what ends the state
OPEN         everybody         the hub, the writer greenlet      close(); a failed send
UNREACHABLE  nobody            nobody; input is still handled    close()
CLOSING      nobody            all that is queued                half-close; no progress; a failed send
TRUNCATED    nobody            the packet in flight, the Error   half-close; a failed send
ABANDONED    nobody            nobody                            half-close
HALF_CLOSED  nobody            nobody                            the socket is closed
CLOSED       nobody            nobody                            -
"""

from enum import Enum


class Input(Enum):
    """What a connection receives."""

    OPEN = "the session reads"
    STOPPED = "nobody reads; the session still handles what it has read"
    UNREAD = "the session has handled all that was read; the client may still send"
    ENDED = "the client has closed its side"


class InputEvent(Enum):
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


class Output(Enum):
    """What a connection sends."""

    OPEN = "takes packets and sends them"
    UNREACHABLE = "a send has failed: takes and sends nothing; the session still handles what the client sent before"
    CLOSING = "takes nothing more, and sends what is queued"
    TRUNCATED = "the client takes nothing: sends only the rest of the packet in flight and the last packet"
    ABANDONED = "closed, and a send has failed: nothing goes out any more"
    HALF_CLOSED = "the client has been sent the end of the stream"
    CLOSED = "the socket is closed"


class OutputEvent(Enum):
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
