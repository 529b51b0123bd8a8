"""The errors that ChatClient raises, besides TimeoutError and LocalProtocolError."""

import ssl


class ChatError(Exception):
    """Base class of everything that can go wrong between a client and its server."""


class ConnectionFailed(ChatError):
    """No connection could be made."""


class ConnectionClosed(ChatError):
    """The connection has ended; `reason` is the Error that the server sent before, if any (section 5)."""

    def __init__(self, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class ServerError(ChatError):
    """The server refused a request; `reason` is the text of its Error (section 5)."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason))
        self.reason = reason


class LoginRefused(ServerError):
    """The server refused a login()."""


class ChatRefused(ServerError):
    """The server refused a chat(), which keeps the old partner, or a history()."""


def explain(error: Exception) -> str:
    """What the system says went wrong, in words only."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
