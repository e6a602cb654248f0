"""The guard of a page on this machine: it answers requests of its own pages, under the names that it is known by.

A site that its visitor's browser has open can send requests to 127.0.0.1, and, where it points its own name there (DNS
rebinding), read the answers. What gives it away are the headers Host, which is the name in the browser's address line,
and Origin and Sec-Fetch-Site, which say whose page has asked.
"""

import argparse
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Callable[[], Awaitable[Scope]], Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]\\]+)(?::(\d+))?", re.IGNORECASE)  # a host, perhaps with a port
PORTS = {"http": "80", "https": "443"}  # default ports, which browsers leave out


def host_name(text: str) -> str:
    """A host's name in the form in which names are compared: small letters, without brackets and a dot at the end."""
    name = text.strip("[]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def allowed_host(text: str) -> str:
    """A host's name as an argument, of --allow-host.

    Raises:
        argparse.ArgumentTypeError: it is no host's name.
    """
    found = ADDRESS.fullmatch(f"[{text}]" if text.count(":") > 1 and text[0] != "[" else text)
    if not found or found[2] or "*" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a host's name, as lab.example, without http://, port and path"
        )
    name = host_name(found[1])
    try:
        return name if name.isascii() else name.encode("idna").decode()  # as browsers send it
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a host's name") from None


class OwnPages:
    """An ASGI application that answers requests of its own pages; others get 403, on every route.

    Args:
        app: the application that answers.
        names: names of hosts, as `host_name` makes them. Pages of these are its own if their port is the request's.
        added: further names, of proxies that may have another port, or may put another name into Host.
    """

    def __init__(self, app: App, names: Iterable[str] = LOOPBACK, added: Iterable[str] = ()) -> None:
        self.app, self.added = app, frozenset(added)
        self.names = frozenset(names) | self.added

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Scope]], send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not (fault := self.fault(scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"403: {fault}\n".encode()})

    def fault(self, scope: Scope) -> str | None:
        """The reason why a request is not answered; None where it is."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1").strip())
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not (host := ADDRESS.fullmatch(hosts[0])):
            return "the request does not say by one name which host it wants"
        if host_name(host[1]) not in self.names:
            return f"the page is not known as {host[1]}; app.py --allow-host {host[1]} makes it so"
        for origin in (origins := headers.get(b"origin", [])):
            if not self.is_own(origin, host[2]):
                return f"the request comes from a page of {origin}; app.py --allow-host NAME allows those of a host"
        site = headers.get(b"sec-fetch-site", ["none"])
        if not origins and not {"none", "same-origin"}.issuperset(site) and not followed_link(scope, headers):
            return "the request comes from a page of another site"
        return None

    def is_own(self, origin: str, port: str | None) -> bool:
        """Whether an Origin is this page under one of its names."""
        scheme, _, address = origin.partition("://")
        found = ADDRESS.fullmatch(address)
        if scheme not in PORTS or not found or (name := host_name(found[1])) not in self.names:
            return False
        return name in self.added or (found[2] or PORTS[scheme]) == (port or PORTS[scheme])


def followed_link(scope: Scope, headers: dict[bytes, list[str]]) -> bool:
    """Whether a visitor opens the page by a link on another page, or in a frame of a notebook."""
    return scope.get("method") in ("GET", "HEAD") and headers.get(b"sec-fetch-mode") == ["navigate"]
