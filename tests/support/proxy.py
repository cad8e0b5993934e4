"""A reverse proxy on this machine that passes requests on under another Host, as nginx and Apache
do when nothing else is configured.
"""

import asyncio
import re
import threading


class HostProxy:
    """Serves `address` until it is left and hands everything to `port` with the Host rewritten.
    Connections carry one request each, unless they become a WebSocket.
    """

    def __init__(self, port: int) -> None:
        self._port, self._ready = port, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "HostProxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error) -> None:
        self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._left = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        self._ready.set()
        await self._left.wait()
        server.close()

    async def _serve(self, reader, writer) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            upstream, down = await asyncio.open_connection("127.0.0.1", self._port)
            down.write(self._rewritten(head))
            await asyncio.gather(self._pass_on(reader, down), self._pass_on(upstream, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    def _rewritten(self, head: bytes) -> bytes:
        head = re.sub(rb"(?im)^host:.*\r$", b"Host: 127.0.0.1:%d\r" % self._port, head)
        if b"upgrade: websocket" in head.lower():
            return head
        return re.sub(rb"(?im)^connection:.*\r$", b"Connection: close\r", head)

    @staticmethod
    async def _pass_on(reader, writer) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
