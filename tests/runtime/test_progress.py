"""Progress bars where nobody can see them."""

import io
import sys

import pytest

from runtime import progress


class Closed(io.StringIO):
    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [None, Closed(), object(), io.StringIO()], ids=["none", "closed", "odd", "a file"])
def test_a_bar_needs_no_terminal(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert not progress.on_terminal()
    if not isinstance(stream, Closed) and type(stream) is not object:
        assert list(progress.bar(range(3))) == [0, 1, 2]
