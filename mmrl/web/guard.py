"""What stands before every page: token, host, headers, and one line for every refusal."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrl.types import InputError
from mmrl.web.limits import Refusal

_DISCARD_SECONDS = 5.0  # for what is left of a refused body
_ABRUPT = (401, 408, 421)  # strangers and slow senders, for whom nothing more is read
_GONE = 499  # what logs and metrics state of a request whose sender has left
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
logger = logging.getLogger("mmrl.web")

Seen = Callable[[str, int, float], None]
"""(route, status, seconds) of a request that has ended."""


class Guard:
    """Lets a request through if it carries the token; answers each error in one line of JSON.

    A token comes as `Authorization: Bearer TOKEN`. With `cookie` it may also come as a cookie of
    that name; opening /?token=TOKEN sets it. Neither bodies nor paths nor queries are logged.

    Args:
      app: what answers.
      token: that a request must carry.
      open_paths: paths that need no token.
      hosts: values of the header Host that are accepted, against DNS rebinding; empty: all.
      cookie: name of the cookie; "": none.
      seen: called when a request has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        open_paths: Collection[str] = (),
        hosts: Collection[str] = (),
        cookie: str = "",
        seen: Seen = lambda route, status, seconds: None,
    ) -> None:
        self._app, self._token, self._open = app, token, open_paths
        self._hosts, self._cookie, self._seen = hosts, cookie, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0
        rest = _Rest(receive)

        async def secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if entered := self._enter(scope):
                await entered(scope, receive, secured)
            else:
                await self._app(scope, rest.receive, secured)
        except Gone:
            status = _GONE
        except Exception as error:
            if status:
                raise
            if getattr(error, "status", 0) not in _ABRUPT:
                await rest.discard()
            await _response(error)(scope, receive, secured)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            seconds = time.monotonic() - begun
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * seconds)
            self._seen(route, status, seconds)

    def _enter(self, scope: Scope) -> Response | None:
        """Checks a request; the response that sets the cookie, if that is asked for.

        Raises:
          Refusal: 421 for another host, 401 without the token.
        """
        headers = Headers(scope=scope)
        if self._hosts and headers.get("host", "") not in self._hosts:
            raise Refusal(421, "the header Host names another machine")
        if scope["path"] in self._open:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if self._cookie:
            stored = cookie_parser(headers.get("cookie", ""))
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(asked):
                response = RedirectResponse("/", 303)
                response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
                return response
            if self._is_token(stored.get(self._cookie, "")):
                return None
        raise Refusal(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


async def raised(request: Request, error: Exception) -> Response:
    """Leaves an error of Starlette to the guard."""
    raise error


class _Rest:
    """What is left of a body."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._more = receive, True

    async def receive(self) -> Message:
        """The next part."""
        message = await self._receive()
        self._more = message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Reads the rest and keeps nothing: who is still sending would not read the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while self._more:
                    await self.receive()


class Gone(Exception):
    """The sender of a request left before the answer."""


def _response(error: Exception) -> Response:
    """What a request gets for an error: a status and one line of JSON."""
    headers: dict[str, Any] = {}
    if isinstance(error, Refusal):
        status, line, headers = error.status, str(error), error.headers
    elif isinstance(error, HTTPException):
        status, line, headers = error.status_code, error.detail, dict(error.headers or {})
    elif isinstance(error, InputError):
        status, line = 400, str(error)
    else:
        status, line = 500, "the server failed"
        logger.error("%s", _place(error))
    line = " ".join(line.split())
    # What is left of a body would be taken for the next request.
    return JSONResponse({"error": line}, status, {**headers, "connection": "close"})


def _place(error: BaseException) -> str:
    """Kind and place of an error, without its message, which may quote a payload."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return json.dumps({"failed": type(error).__name__, "at": frames[-6:]})
