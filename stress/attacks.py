"""Hostile clients of several kinds, and two honest ones that chat meanwhile.

`python -m stress.attacks KIND PORT SECONDS` runs the clients of one kind and prints, as JSON, what they did.
"""

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

from protocol import (
    ALL_FEATURES,
    MAX_HISTORY,
    NO_FEATURES,
    Feature,
    PacketType,
    encode,
    encode_chat_init,
    encode_history_request,
    encode_login,
    encode_message,
)
from testkit import HarnessError
from testkit.wire import Wire

HOST = "127.0.0.1"
PATIENCE = 0.2  # seconds that a flooder waits for room before it checks the time
BETWEEN_MESSAGES = 0.1  # seconds; of an honest client
THE_END = "the end"  # an honest client's last message
GROWS = "\ufdfa"  # 3 bytes in a name, 18 characters in its skeleton
PING = encode(PacketType.PING, b"")
TINY = encode_message(b"x")

Attack = Callable[[Wire, str, float, Counter[str]], None]


def flood(wire: Wire, packet: bytes, until: float, tally: Counter[str]) -> None:
    """Send one packet over and over, as far as the server reads it, and read nothing."""
    many = memoryview(packet * (65536 // len(packet)))
    sent = 0
    wire.socket.settimeout(PATIENCE)
    while time.monotonic() < until:
        with suppress(TimeoutError):
            whole = sent // len(packet)
            sent += wire.socket.send(many[sent % len(packet) :])
            tally["packets"] += sent // len(packet) - whole


def log_in(wire: Wire, name: str, tally: Counter[str], features: Feature = NO_FEATURES) -> None:
    """Log in and read the list of users. Raises HarnessError if the server refuses."""
    tally["packets"] += 1
    wire.send(encode_login(name, features=features))
    wire.read_list(name)


def pings(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    log_in(wire, name, tally)
    flood(wire, PING, until, tally)


def lists(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    log_in(wire, name, tally)
    flood(wire, encode_login(name), until, tally)


def errors(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    log_in(wire, name, tally)
    flood(wire, TINY, until, tally)


def to_itself(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """Flood its own outbox: a receipt for each message, and all of it in the history."""
    log_in(wire, name, tally, ALL_FEATURES & ~Feature.BRIEF)
    wire.send(encode_chat_init(wire.users[name]))
    flood(wire, encode_message(b""), until, tally)


def silence(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """Log in under a name that others write to, and read nothing until the server disconnects it.

    Neither messages, nor presence, nor what waited in its mailbox.
    """
    log_in(wire, name, tally, Feature.PRESENCE)
    while time.monotonic() < until:
        wire.send(PING)
        time.sleep(PATIENCE)


def to_a_silent_one(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """Flood the silent client, and its mailbox once the server has dropped it."""
    log_in(wire, name, tally, Feature.MAILBOX)
    silent = next((user_id for user, user_id in wire.users.items() if user.startswith("silence")), wire.users[name])
    wire.send(encode_chat_init(silent))
    flood(wire, TINY, until, tally)


def letters(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """Write to every user in turn, online or offline, except the two honest ones."""
    log_in(wire, name, tally, ALL_FEATURES & ~Feature.BRIEF)
    flood(wire, b"".join(encode_chat_init(user_id) + TINY for user_id in range(3, 129)), until, tally)


def replays(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """Request as much history as one request may ask for, over and over, and read none of it."""
    log_in(wire, name, tally, Feature.HISTORY)
    own = wire.users[name]
    wire.send(encode_chat_init(own), encode_message(b"x" * 136) * MAX_HISTORY)
    flood(wire, encode_history_request(MAX_HISTORY, own), until, tally)


def wrong_passwords(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    """The first password creates the account; each further one is wrong and costs a hash. The third closes."""
    while time.monotonic() < until:
        tally["packets"] += 1
        wire.send(encode_login(name, f"{random.random()}"))
        if not (reason := _refusal(wire)):
            return
        tally[reason] += 1


def sign_ups(wire: Wire, _: str, until: float, tally: Counter[str]) -> None:
    """Sign up names that take as much memory as names can, half of them with a password."""
    while time.monotonic() < until:
        tally["packets"] += 1
        wire.send(encode_login(f"{GROWS * 8}{tally['packets']}", random.choice(("", "secret"))))
        if not (reason := _refusal(wire)):
            return
        tally[reason] += 1


def _refusal(wire: Wire) -> str:
    """The reason of the Error that comes next; "" for another packet or the end."""
    packet = wire.read()
    return packet[1][2:].decode() if packet and packet[0] == PacketType.ERROR else ""


def come_and_go(wire: Wire, _: str, __: float, ___: Counter[str]) -> None:
    """Connect and send nothing. Waits for the end, since a full backlog delays the next connect by a second."""
    wire.half_close()
    wire.read()


def half_a_packet(wire: Wire, _: str, __: float, tally: Counter[str]) -> None:
    tally["packets"] += 1
    wire.send(encode_login("half")[:-1])
    while reason := _refusal(wire):
        tally[reason] += 1


def garbage(wire: Wire, _: str, until: float, tally: Counter[str]) -> None:
    flood(wire, os.urandom(4096), min(until, time.monotonic() + PATIENCE), tally)


def byte_by_byte(wire: Wire, name: str, until: float, tally: Counter[str]) -> None:
    log_in(wire, name, tally)
    while time.monotonic() < until:
        for byte in encode(PacketType.PONG, b"1234567"):
            wire.socket.send(bytes((byte,)))
        tally["packets"] += 1


def from_the_backlog(wire: Wire, _: str, until: float, tally: Counter[str]) -> None:
    """More clients than there are places: they send before they are served, and never log in."""
    flood(wire, PING, until, tally)


ATTACKS: dict[Attack, int] = {  # number of clients: 20, and 10 that wait in the backlog
    silence: 1,
    to_a_silent_one: 2,
    pings: 1,
    lists: 1,
    errors: 2,
    to_itself: 2,
    letters: 1,
    replays: 1,
    wrong_passwords: 2,
    sign_ups: 1,
    come_and_go: 2,
    half_a_packet: 1,
    garbage: 2,
    byte_by_byte: 1,
    from_the_backlog: 10,
}


def keep_attacking(attack: Attack, port: int, number: int, until: float, tally: Counter[str]) -> None:
    """Connect and attack until the server disconnects this client, over and over."""
    name = f"{attack.__name__}-{number}".ljust(32, "-")
    while time.monotonic() < until:
        with suppress(OSError, HarnessError), Wire(HOST, port) as wire:  # the server disconnects it, as it should
            tally["connections"] += 1
            attack(wire, name, until, tally)


def attack_for(attack: Attack, port: int, seconds: float) -> dict[str, int]:
    """Run all clients of one kind for so many seconds; returns what they did."""
    tally: Counter[str] = Counter()
    until = time.monotonic() + seconds
    for number in range(ATTACKS[attack]):
        threading.Thread(target=keep_attacking, args=(attack, port, number, until, tally), daemon=True).start()
    time.sleep(seconds)
    return dict(tally)


def chat_honestly(port: int, seconds: float) -> dict[str, float]:
    """Two clients write to each other; returns the messages sent and received in order, and the latency in ms."""
    names = ("honest-a", "honest-b")
    wires = []
    for name in names:
        wires.append(Wire(HOST, port))
        log_in(wires[-1], name, Counter())
    for wire, partner in zip(wires, reversed(names), strict=True):
        wire.chat_with(wires[1].users[partner])
    late: list[float] = []
    sent: list[list[float]] = [[], []]

    def listen(side: int) -> None:
        late.extend(_receive(wires[1 - side], names[side], sent[side]))

    threads = [threading.Thread(target=listen, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for wire, times in zip(wires, sent, strict=True):
            times.append(time.monotonic())
            wire.say(f"{len(times) - 1}")
        time.sleep(BETWEEN_MESSAGES)
    for wire in wires:
        wire.say(THE_END)
    for thread in threads:
        thread.join()
    late.sort()
    figures = {"p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "max": late[-1]} if late else {}
    milliseconds = {name: round(value * 1000, 1) for name, value in figures.items()}
    return {"sent": sum(map(len, sent)), "received": len(late), **milliseconds}


def _receive(wire: Wire, sender: str, sent: list[float]) -> Iterator[float]:
    """The seconds that each message took, as long as messages arrive unchanged and in order."""
    for number in count():
        try:
            packet = wire.read()
        except (OSError, HarnessError) as error:
            print(f"after {number} messages of {sender}: {error}", file=sys.stderr)
            return
        if packet != (PacketType.MESSAGE, encode_message(f"{sender}:{number}".encode())[2:]):
            if packet != (PacketType.MESSAGE, encode_message(f"{sender}:{THE_END}".encode())[2:]):
                print(f"instead of message {number} of {sender}: {packet!r}", file=sys.stderr)
            return
        yield time.monotonic() - sent[number]


def main() -> None:
    kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    kinds = {attack.__name__: attack for attack in ATTACKS}
    done = attack_for(kinds[kind], port, seconds) if kind in kinds else chat_honestly(port, seconds)
    print(json.dumps(done), flush=True)
    os._exit(0)  # some clients' threads still wait for the server, and would forever


if __name__ == "__main__":
    main()
