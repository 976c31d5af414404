"""Where the agent's HTTP servers listen: a TCP address or a socket in the file system, and what a person is told if not."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from appliance_image.errors import ApplianceError

_BACKLOG: Final = 64
_ERRNO_HINT = "see `address` and `port` in [metrics] of the configuration"


class WebError(ApplianceError):
    pass


class Place(Protocol):
    def listen(self) -> socket.socket:
        """Bound, and not blocking. Raises WebError."""
        ...

    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TcpPlace:
    address: str
    port: int

    def listen(self) -> socket.socket:
        with ExitStack() as stack:
            try:
                listener = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, socket.SOCK_STREAM)
                stack.callback(listener.close)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if listener.family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is every address of the host
                listener.bind((self.address, self.port))
                listener.listen(_BACKLOG)
                listener.setblocking(False)
            except OSError as error:
                raise _told(error, self.address, self.port) from error
            stack.pop_all()
        return listener

    def leave(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Owner and group may connect: who else may not is the file system's to say."""

    path: Path
    mode: int = 0o660

    def listen(self) -> socket.socket:
        with ExitStack() as stack:
            try:
                self.leave()  # what an agent left that was killed
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                stack.callback(listener.close)
                listener.bind(str(self.path))
                self.path.chmod(self.mode)
                listener.listen(_BACKLOG)
                listener.setblocking(False)
            except OSError as error:
                hint = f"look at `ls -ld {self.path.parent}`, which the unit's RuntimeDirectory= makes"
                raise WebError(f"cannot listen on {self.path}: {error.strerror or error}", hint=hint) from error
            stack.pop_all()
        return listener

    def leave(self) -> None:
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                self.path.unlink()


def own_address(peer: socket.socket) -> str:
    """`192.0.2.7:9440` or `[2001:db8::7]:9440`: where the peer reached this server."""
    if peer.family == socket.AF_UNIX:
        return "localhost"
    host, port = peer.getsockname()[:2]
    address = ipaddress.ip_address(str(host).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return f"{mapped}:{port}" if mapped else f"[{address}]:{port}"
    return f"{address}:{port}"


def _told(error: OSError, address: str, port: int) -> WebError:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            hint = f"`ss -ltnp 'sport = :{port}'` names the program; or choose another `port` in [metrics]"
            return WebError(f"cannot serve metrics on {where}: the port is in use", hint=hint)
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            hint = "`ip address` lists the addresses of this host; `0.0.0.0` in [metrics] is all of them"
            return WebError(f"cannot serve metrics on {where}: not an address of this host", hint=hint)
        case errno.EACCES | errno.EPERM:
            hint = "choose a `port` from 1024 on in [metrics]"
            return WebError(f"cannot serve metrics on {where}: not allowed", hint=hint)
        case _:
            return WebError(f"cannot serve metrics on {where}: {error.strerror}", hint=_ERRNO_HINT)
