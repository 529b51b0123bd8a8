"""Takes the README's picture of a chat: `python -m testkit.terminal_picture FILE.svg`.

A real server, bob in one terminal and alice in another; the picture is what stands on alice's screen at the end.
"""

import os
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from testkit.programs import COLUMNS, ScreenProgram
from testkit.server import run_server

CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 18, 14  # pixels, for a monospaced font of 14 pixels
FRAME = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
    "<title>{title}</title>"
    '<rect width="100%" height="100%" rx="8" fill="#1e1e2e"/>'
    '<g font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14" fill="#dcdfe4">{lines}</g>'
    "</svg>\n"
)


def chat(folder: Path) -> str:
    """What alice sees after a short chat with bob, who leaves."""
    home = os.environ | {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "CHAT_PASSWORD": ""}
    with (
        run_server(folder / "data") as server,
        ScreenProgram("terminal.py", "bob", server.address, environment=home) as bob,
    ):
        bob.wait_for("^bob>$")
        with ScreenProgram("terminal.py", "alice", server.address, environment=home) as alice:
            alice.wait_for("^alice>$")
            alice.type("/chat bob\r")
            alice.wait_for("^alice -> bob>")
            alice.type("hello bob, is this thing on?\r")
            alice.wait_for("delivered$")
            bob.wait_for("^alice: hello")
            bob.type("/chat alice\r")
            bob.wait_for("^bob -> alice>")
            bob.type("loud and clear\r")
            alice.wait_for("^bob: loud and clear")
            bob.type("\x04")
            alice.wait_for(r"^\* bob has left")
            alice.type("lunch at one?\r")
            alice.wait_for("stored$")
            return alice.text.replace(server.address, "localhost:9034")


def draw(screen: str) -> str:
    """The screen as SVG, one element for each line; what stands at the right edge keeps its place."""
    lines = screen.splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        left, _, right = line.partition("  ")
        y = MARGIN + number * LINE_HEIGHT - 4
        rows.append(f'<text x="{MARGIN}" y="{y}">{escape(left)}</text>')
        if right.strip():
            x = MARGIN + COLUMNS * CELL_WIDTH
            rows.append(f'<text x="{x:.0f}" y="{y}" text-anchor="end" fill="#a6e3a1">{escape(right.strip())}</text>')
    width = round(2 * MARGIN + COLUMNS * CELL_WIDTH)
    height = 2 * MARGIN + len(lines) * LINE_HEIGHT
    return FRAME.format(width=width, height=height, title="A chat in the terminal program", lines="".join(rows))


def main(file: Path) -> None:
    with TemporaryDirectory() as folder:
        file.write_text(draw(chat(Path(folder))))
    print(file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m testkit.terminal_picture FILE.svg")
    main(Path(sys.argv[1]))
