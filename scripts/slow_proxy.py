"""A proxy before a server on the loopback that makes it slow."""

import asyncio
import threading
from contextlib import suppress

__all__ = ["DELAY_S", "Proxy"]

DELAY_S = 0.075


class Proxy:
    """Passes connections on to a port of the loopback: each request after a delay.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._connect, "127.0.0.1", 0)
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, with all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _end(self) -> None:
        self._server.close()
        open_connections = asyncio.all_tasks() - {asyncio.current_task()}
        for each in open_connections:
            each.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)

    async def _connect(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, to = await asyncio.open_connection("127.0.0.1", self._to)
        answered = asyncio.Event()
        answered.set()
        await asyncio.gather(self._ask(client, to, answered), self._answer(server, back, answered))

    async def _ask(
        self, client: asyncio.StreamReader, to: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await client.read(1 << 16):
                if answered.is_set():  # a request begins
                    answered.clear()
                    await asyncio.sleep(DELAY_S)
                to.write(data)
                await to.drain()
        to.close()

    async def _answer(
        self, server: asyncio.StreamReader, back: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await server.read(1 << 16):
                answered.set()
                back.write(data)
                await back.drain()
        back.close()
