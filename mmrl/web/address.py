"""Where a command listens, and the token that a request needs: --host, --port, --token_file."""

import dataclasses
import secrets
import socket
from pathlib import Path

from absl import flags

from mmrl.types import InputError

LOOPBACK = "127.0.0.1"
_SHORTEST = 16  # characters of a token


class Address:
    """The flags of an address.

    Args:
      values: the flags of the command.
      port: by default.
    """

    def __init__(self, values: flags.FlagValues, *, port: int) -> None:
        self._host = flags.DEFINE_string(
            "host",
            LOOPBACK,
            "ADDRESS: Where to listen; by default other machines cannot connect.",
            flag_values=values,
        )
        self._port = flags.DEFINE_integer(
            "port",
            port,
            "N: Where to listen; 0: any free port.",
            lower_bound=0,
            upper_bound=2**16 - 1,
            flag_values=values,
        )
        self._file = flags.DEFINE_string(
            "token_file",
            None,
            f"FILE: Holds the token, one line of at least {_SHORTEST} characters; by default a "
            "random one is made and printed.",
            flag_values=values,
        )

    @property
    def is_every(self) -> bool:
        """Whether all addresses of the machine are asked for."""
        return self._host.value in ("", "0.0.0.0", "::")

    def open(self) -> "Place":
        """Binds the address.

        Raises:
          InputError: it is none of this machine or in use, or the file holds no token.
        """
        file = self._file.value
        token = read_token(Path(file)) if file else secrets.token_urlsafe(24)
        return Place(bind(self._host.value, self._port.value), token, bool(file))


@dataclasses.dataclass(frozen=True)
class Place:
    """An address that is bound.

    Attributes:
      bound: the socket.
      token: that requests need.
      given: whether the user gave it.
    """

    bound: socket.socket
    token: str
    given: bool

    @property
    def name(self) -> str:
        """HOST:PORT, as in an address of the web."""
        host, port = self.bound.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def names(self) -> set[str]:
        """Values of the header Host by which a browser reaches the address."""
        return {self.name, f"localhost:{self.bound.getsockname()[1]}"}

    def warnings(self) -> list[str]:
        """What the user should know of the address."""
        host = self.bound.getsockname()[0]
        if host.startswith("127.") or host == "::1":
            return []
        return [f"other machines reach {self.name}, and nothing is encrypted; let a proxy add TLS"]


def read_token(path: Path) -> str:
    """The token that a file holds.

    Raises:
      InputError: no such file, or no token of at least 16 visible ASCII characters in it.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputError(f"--token_file={path}: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if len(token) < _SHORTEST or not all("!" <= sign <= "~" for sign in token):
        raise InputError(
            f"--token_file={path} holds no token; expected one line of at least {_SHORTEST} "
            "visible ASCII characters"
        )
    return token


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; it does not accept connections yet.

    Args:
      port: 0: any free one.

    Raises:
      InputError: no such address, or it is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise InputError(
            f"--host={host} --port={port}: {error.strerror}; expected an address of this machine "
            "and a free port, or 0 for any"
        ) from None
    return bound
