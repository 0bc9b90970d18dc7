"""The limits of requests, and how a body is read within them."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

JSON = "application/json"
_LONG = 2**16  # bytes
_SOON = {"retry-after": "1"}


class Refusal(Exception):
    """A request gets a status and one line in place of an answer.

    Attributes:
      status: of HTTP.
      headers: further headers of the response.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all requests together.

    Attributes:
      body: bytes of a body.
      held: bytes of all bodies that are held at once.
      pixels: of an image.
      items: images or texts of a request.
      characters: of a text.
      seconds: for a body to arrive, and then for the answer to be made.
      waiting: requests that are worked on or wait.
    """

    body: int = 2**26
    held: int = 2**28
    pixels: int = 2**25
    items: int = 64
    characters: int = 20_000
    seconds: float = 30.0
    waiting: int = 64


class Admission:
    """Admits requests as long as there are few of them and their bodies are small.

    Attributes:
      requests: number of requests that are admitted now.
      held: bytes of their bodies.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.requests, self.held = limits, 0, 0

    @contextmanager
    def admit(self) -> Iterator["Admitted"]:
        """Counts a request, and what it holds, while the block runs.

        Raises:
          Refusal: 429, as many requests as allowed are there already.
        """
        if self.requests >= self.limits.waiting:
            raise Refusal(429, f"{self.requests} requests wait already; ask again soon", _SOON)
        admitted = Admitted(self)
        self.requests += 1
        try:
            yield admitted
        finally:
            self.requests -= 1
            self.held -= admitted.held


class Admitted:
    """A request that is admitted; `held` counts the bytes of its body."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self.held = admission, 0

    async def body(self, request: Request) -> bytes:
        """The body of the request.

        Raises:
          Refusal: 400 for a body that ends early, 408 for a slow one, 413 for a large one, 429 if
            those of other requests leave no room.
        """
        limits = self._admission.limits
        try:
            async with asyncio.timeout(limits.seconds):
                return await self._read(request)
        except TimeoutError:
            raise Refusal(408, f"the body took longer than {limits.seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refusal(400, "the connection ended before the body") from None

    async def json(self, request: Request, expected: dict[str, type]) -> dict[str, Any]:
        """The keys and values of a JSON body, see `parse`.

        Raises:
          Refusal: as of `body` and `parse`; 415 for a body of another kind.
        """
        if media_type(request) != JSON:
            raise Refusal(415, f"Content-Type is not {JSON}")
        body = await self.body(request)
        # A long one takes a while, in which other requests go on.
        if len(body) > _LONG:
            return await asyncio.to_thread(parse, body, expected)
        return parse(body, expected)

    async def _read(self, request: Request) -> bytes:
        self._check(_stated_length(request))
        parts = []
        async for part in request.stream():
            self._check(self.held + len(part))
            if self._admission.held + len(part) > self._admission.limits.held:
                raise Refusal(429, "the bodies of other requests leave no room", _SOON)
            self.held += len(part)
            self._admission.held += len(part)
            parts.append(part)
        return b"".join(parts)

    def _check(self, size: int) -> None:
        if size > (most := self._admission.limits.body):
            raise Refusal(413, f"the body has more than {most} bytes")


def media_type(request: Request) -> str:
    """What the header Content-Type states, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _stated_length(request: Request) -> int:
    given = request.headers.get("content-length", "0")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else 0


def parse(body: bytes, expected: dict[str, type]) -> dict[str, Any]:
    """The keys and values of a JSON body.

    Args:
      expected: key -> type of its value; all keys are required, and no other is allowed.

    Raises:
      Refusal: 400, the body is no such JSON.
    """
    try:
        given = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "the JSON is nested too deeply") from None
    except ValueError as error:  # of json, or of UTF-8; neither is quoted, as it quotes the body
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(400, f"the body is not JSON{where}") from None
    if not isinstance(given, dict) or given.keys() != expected.keys():
        raise Refusal(400, f"expected a JSON object with the keys {', '.join(expected)}, no others")
    for key, kind in expected.items():
        # A bool is an int, but no number.
        if not isinstance(given[key], kind) or isinstance(given[key], bool):
            raise Refusal(400, f"{key} is no {_NAMES[kind]}")
    return given


_NAMES = {list: "list", str: "text", int: "whole number"}


def check_text(text: str, characters: int, what: str) -> str:
    """A text of a request.

    Raises:
      Refusal: 400 for an unpaired surrogate, 413 for a long text.
    """
    if len(text) > characters:
        raise Refusal(413, f"{what} has {len(text)} characters; expected at most {characters}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(400, f"{what} is no Unicode text") from None
    return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
