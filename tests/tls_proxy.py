"""A TLS proxy in front of a server that speaks none: `python -m tests.tls_proxy CERTIFICATE HOST PORT`.

It is a process of its own, so that gevent stays out of its loop, and writes the number of its port to standard output.
"""

import asyncio
import ssl
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.processes import ROOT


@contextmanager
def run_proxy(certificate: Path, host: str, port: int) -> Iterator[int]:
    """Start a proxy to host:port; its own port."""
    command = [sys.executable, "-m", "tests.tls_proxy", str(certificate), host, str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def serve(certificate: str, host: str, port: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def join(near_reader: StreamReader, near_writer: StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            near_writer.close()
        else:
            await asyncio.gather(pass_on(near_reader, far_writer), pass_on(far_reader, near_writer))

    server = await asyncio.start_server(join, "127.0.0.1", ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):  # one of them broke off: the other one hears of it
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
