"""An S3 server on the loopback, behind a proxy that is slow and can go away."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer

__all__ = ["DELAY_S", "Proxy", "Store", "store"]

_BUCKET = "bucket"
DELAY_S = 0.075
_AWAY_S = 30.0


class Proxy:
    """Passes connections on to a port of the loopback: each request after a delay.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._back = 0.0  # the time at which it is there again
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._connect, "127.0.0.1", 0)
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def go_away(self) -> None:
        """Close all connections, and each new one at once, for half a minute."""
        self._back = time.monotonic() + _AWAY_S
        self._loop.call_soon_threadsafe(self._close_all)

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

    def _close_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _connect(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._back:
            back.transport.abort()
            return
        server, to = await asyncio.open_connection("127.0.0.1", self._to)
        self._open |= {back, to}
        answered = asyncio.Event()
        answered.set()
        await asyncio.gather(self._ask(client, to, answered), self._answer(server, back, answered))
        self._open -= {back, to}

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


class Store:
    """The server's bucket as a run has it, and as who looks at it from beside.

    Attributes:
        url: of a folder in the bucket, for `cluster.storage`.
        environment: by which a command's clients go through the proxy.
        proxy: what they go through.
    """

    url = f"s3://{_BUCKET}/runs"

    def __init__(self, server: int, proxy: Proxy) -> None:
        self.proxy = proxy
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}",
        }
        options = {"endpoint_url": f"http://127.0.0.1:{server}", "region_name": "us-east-1"}
        self._files: Any = s3fs.S3FileSystem(
            key="key",
            secret="secret",
            client_kwargs=options,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        reset = urllib.request.Request(f"http://127.0.0.1:{server}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # servers of one process share what they store
        self._files.call_s3("create_bucket", Bucket=_BUCKET)  # `mkdir` names the region, too

    def put(self, folder: Path, name: str) -> None:
        """Upload a folder of a run by its name there."""
        self._files.put(f"{folder}/", f"{_BUCKET}/runs/run/{name}/", recursive=True)

    def listing(self) -> dict[str, str]:
        """All names of the run, each with what changes when it is written again."""
        found = self._files.find(f"{_BUCKET}/runs/run", detail=True)
        start = len(f"{_BUCKET}/runs/run/")
        return {name[start:]: str(facts["LastModified"]) for name, facts in found.items()}


@contextmanager
def store() -> Iterator[Store]:
    """A new one, gone at the end."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    try:
        yield Store(port, proxy)
    finally:
        proxy.close()
        server.stop()
