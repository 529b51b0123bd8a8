"""What a call of ChatClient raises, besides TimeoutError and LocalProtocolError."""

import ssl


class ChatError(Exception):
    """The base of what can go wrong between a client and its server."""


class ConnectionFailed(ChatError):
    """No connection could be made."""


class ConnectionClosed(ChatError):
    """The connection has ended; `reason` is the Error that came before, if there was one (section 5)."""

    def __init__(self, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class ServerError(ChatError):
    """The server refused what was asked; `reason` is the text of its Error (section 5)."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason))
        self.reason = reason


class LoginRefused(ServerError):
    """The answer to login()."""


class ChatRefused(ServerError):
    """The answer to chat(), where the old partner stays, or to history()."""


def explain(error: Exception) -> str:
    """What the system says has gone wrong, in words alone."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
