"""The server: slow and broken connections, and an end that finishes what waits."""

import asyncio
import logging
import signal
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_SECONDS = 10.0  # for the head of a request
_HEAD_BYTES = 2**16
_IDLE_SECONDS = 5  # between two requests of a connection


def listen(
    app: ASGIApp, bound: socket.socket, *, connections: int, seconds: float, log: int
) -> None:
    """Serves `app` until SIGTERM or Ctrl-C; then finishes the requests that are there.

    Args:
      connections: at most; a request beyond them gets status 503.
      seconds: that requests may take to finish at the end.
      log: level of what is printed: logging.INFO has a line for each request, logging.WARNING only
        what went wrong.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("mmrl.web", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(log if name == "mmrl.web" else logging.WARNING)
    server = uvicorn.Server(config(app, connections=connections, seconds=seconds))
    # uvicorn raises a signal again when it has ended: the command goes on and exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    server.run(sockets=[bound])


def config(app: ASGIApp, *, connections: int, seconds: float) -> uvicorn.Config:
    """The settings of the server, see `listen`."""
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,  # it logs paths and queries
        server_header=False,
        proxy_headers=False,
        limit_concurrency=connections,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(seconds) + 1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )


class Protocol(H11Protocol):
    """HTTP/1.1 that ends a connection whose request does not arrive, and says why in one line."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection begins."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection has ended."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._waiting is None and self._is_between_requests():
            self._await_head()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_waiting()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self._is_between_requests() and not self.transport.is_closing():
            line = f"the head of a request took longer than {_HEAD_SECONDS:g} seconds"
            self._refuse("408 Request Timeout", line)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self._refuse("400 Bad Request", "this is no valid HTTP request")

    def _refuse(self, status: str, line: str) -> None:
        body = f'{{"error":"{line}"}}'
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()
