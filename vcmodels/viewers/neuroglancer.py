"""A scene in neuroglancer, whose page and data this process serves until it ends.

The page comes from the package `neuroglancer`, the voxels from our own reader, through the same
server: the address holds a token that nobody guesses, and nothing but the layers can be asked for.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import neuroglancer
import tornado.web
from neuroglancer import server as page_server

from vcmodels.errors import RefusedError, RunError
from vcmodels.reporting import Reporter
from vcmodels.viewers.scene import Scene
from vcmodels.viewers.served import MissingFileError, ServedScene
from vcmodels.viewers.state import state_of

LOCAL = "127.0.0.1"


@contextmanager
def serving(scene: Scene, host: str, port: int, reporter: Reporter) -> Iterator[str]:
    """Serve a scene while the block runs; gives the address of the page.

    Args:
        scene: what is shown.
        host: the address to listen on; `127.0.0.1` is reached from this machine alone.
        port: 0 takes a free one.
        reporter: told, once for each layer, what cannot be read.

    Raises:
        RefusedError: the address cannot be used.
    """
    _require_free(host, port)
    neuroglancer.set_server_bind_address(host, port)
    # Else whoever has the address gets this user's tokens for Google and other stores.
    viewer = neuroglancer.Viewer(allow_credentials=False)
    try:
        server = page_server.global_server
        assert server is not None, "making the viewer starts it"
        if (
            ":" in host and host != "::"
        ):  # the package leaves out the brackets of IPv6 (RFC 3986, 3.2.2)
            server.server_url = f"http://[{host}]:{server.port}"
        served = ServedScene(scene)
        route = rf"/layers/{viewer.token}/(.*)"
        settings = {"served": served, "threads": server.executor, "reporter": reporter}
        server.app.add_handlers(r".*", [(route, _Layers, settings), ("/favicon.ico", _Nothing)])
        viewer.set_state(state_of(scene, f"{page_server.get_server_url()}/layers/{viewer.token}"))
        yield viewer.get_viewer_url()
    finally:
        page_server.stop()


def _require_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        RefusedError: it is in use, or not of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        found = f"{host}:{port} cannot be listened on ({error.strerror or error})"
        raise RefusedError("--host, --port", found, "choose others") from error


class _Layers(tornado.web.RequestHandler):
    """Answers for the files of the layers."""

    def initialize(self, served: ServedScene, threads: Any, reporter: Reporter) -> None:  # noqa: ANN401 - an executor
        self.served, self.threads, self.reporter = served, threads, reporter

    async def get(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            body, kind = await loop.run_in_executor(self.threads, self.served.answer, path)
        except MissingFileError:
            self.send_error(404)
            return
        except RunError as error:
            self.served.report_once(path, error, self.reporter)
            self.set_status(500)
            self.finish(str(error))
            return
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "no-store")  # a prediction may still be written
        self.finish(body)

    async def head(self, path: str) -> None:
        await self.get(path)


class _Nothing(tornado.web.RequestHandler):
    """Answers browsers that ask for an icon."""

    def get(self) -> None:
        self.set_status(204)
