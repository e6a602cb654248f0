"""Which requests a page answers: by Host, Origin and Sec-Fetch-Site."""

import argparse
import asyncio

import pytest

from page.hosts import OwnPages, allowed_host


def answer(*headers: tuple[str, str], method: str = "POST", kind: str = "http", added: tuple[str, ...] = ()) -> list:
    """What an application behind it sends: 200, or before it 403, with its headers."""
    sent: list = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "headers": [(k.lower().encode(), v.encode()) for k, v in headers]}
    asyncio.run(OwnPages(app, added=map(allowed_host, added))(scope, None, send))
    return sent


def passes(*headers: tuple[str, str], **settings) -> bool:
    sent = answer(*headers, **settings)
    if sent == [{"status": 200}]:
        return True
    assert sent[0].get("code") == 1008 or sent[0]["status"] == 403
    assert not any(name.startswith(b"access-control") for name, _ in sent[0].get("headers", []))
    return False


@pytest.mark.parametrize(
    "host",
    "localhost localhost:7860 LocalHost:9000 localhost.:7860 127.0.0.1:7860 [::1] [0:0:0:0:0:0:0:1]:80".split(),
)
def test_names_of_this_machine_are_answered(host):
    assert passes(("Host", host)) and passes(("Host", host), kind="websocket")


@pytest.mark.parametrize(
    "host",
    [
        *"evil.example evil.example:7860 localhost.evil.example 127.0.0.1.evil.example a.localhost 127.0.0.2".split(),
        *"0.0.0.0:7860 [::2]:7860 ::1 localhost:7860@evil.example localhost:78a localhost/x 127.1 localhost..".split(),
        *("", "localhost evil.example"),
    ],
)
def test_other_names_are_not(host):
    assert not passes(("Host", host)) and not passes(("Host", host), kind="websocket")
    assert not passes(("Host", host), method="GET") and not passes(("Host", host), method="OPTIONS")


def test_a_request_names_one_host():
    assert not passes() and not passes(("Host", "localhost"), ("Host", "evil.example"))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:7860", "http://localhost:7860"),
        ("localhost:7860", "http://127.0.0.1:7860"),
        ("localhost:9000", "http://localhost:9000"),  # forwarded by ssh, or through a notebook
        ("localhost", "http://localhost"),
        ("localhost", "https://localhost:443"),
        ("[::1]:7860", "http://[::1]:7860"),
    ],
)
def test_its_own_pages_are_answered(host, origin):
    assert passes(("Host", host), ("Origin", origin))


@pytest.mark.parametrize(
    "origin",
    [
        *"http://evil.example http://evil.example:7860 null http://localhost:3000 https://localhost".split(),
        *"file://localhost:7860 http://localhost:7860.evil.example chrome-extension://abc localhost:7860".split(),
        *("", "http://localhost:7860/path"),
    ],
)
def test_other_sites_are_not(origin):
    own = ("Host", "localhost:7860")
    assert not passes(own, ("Origin", origin)) and not passes(own, ("Origin", origin), method="OPTIONS")
    assert not passes(own, ("Origin", origin), kind="websocket")
    assert not passes(own, ("Origin", "http://localhost:7860"), ("Origin", origin))


def test_links_lead_to_the_page_and_pictures_in_other_sites_do_not():
    own, other = ("Host", "localhost:7860"), ("Sec-Fetch-Site", "cross-site")
    assert passes(own, other, ("Sec-Fetch-Mode", "navigate"), method="GET")
    assert not passes(own, other, ("Sec-Fetch-Mode", "no-cors"), method="GET")
    assert not passes(own, ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "no-cors"), method="GET")
    assert not passes(own, other, ("Sec-Fetch-Mode", "navigate"))
    assert passes(own, ("Sec-Fetch-Site", "same-origin")) and passes(own, ("Sec-Fetch-Site", "none"))


def test_names_are_added():
    """A proxy keeps the name that it was asked by, or puts that of this machine there."""
    for host in ("lab.example", "Lab.example:8443", "127.0.0.1:7860"):
        for origin in ("https://lab.example", "https://lab.example:8443"):
            assert passes(("Host", host), ("Origin", origin), added=("LAB.example",))
            assert not passes(("Host", host), ("Origin", origin), added=("other.example",))
    assert passes(("Host", "localhost:7860"), ("Origin", "http://localhost:8080"), added=("localhost",))
    assert passes(("Host", "[2001:db8::1]:80"), added=("2001:db8::1",))
    assert passes(("Host", "xn--bcher-kva.example"), added=("bücher.example",))
    assert b"--allow-host evil.example" in answer(("Host", "evil.example"))[1]["body"]


@pytest.mark.parametrize(
    "text", ["http://lab.example", "lab.example:80", "*", "*.example", "a/b", "a b", "", "[::1]:80"]
)
def test_what_is_no_name(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a host's name, as "):
        allowed_host(text)
