"""Files of a page and its visitors."""

import asyncio
import os
from pathlib import Path

import pytest

from page.visits import GRACE, MAX_AGE, Visits

NOW = 1_000_000.0


def file(folder: Path, name: str, age: float) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("content")
    for each in (path, path.parent):
        os.utime(each, (NOW - age, NOW - age))
    return path


def left(visits: Visits) -> set[str]:
    visits.sweep(NOW)
    return {path.name for path in visits.folder.rglob("*")}


def test_without_visitors_only_what_is_new_or_was_there_stays(tmp_path):
    file(tmp_path, "a/of-the-page", 10 * GRACE)
    visits = Visits(lambda *_: None, tmp_path)
    file(tmp_path, "b/old", 2 * GRACE)
    file(tmp_path, "c/new", GRACE / 2)
    assert left(visits) == {"a", "of-the-page", "c", "new"}


def test_what_a_visitor_has_made_stays_for_a_day(tmp_path):
    visits = Visits(lambda *_: None, tmp_path)
    visits.open = {1: NOW - 3 * GRACE, 2: NOW - 9}
    file(tmp_path, "a/before", 5 * GRACE)
    file(tmp_path, "b/theirs", 2 * GRACE)
    assert left(visits) == {"b", "theirs"}
    visits.open = {1: NOW - 2 * MAX_AGE}
    file(tmp_path, "c/long-ago", MAX_AGE + 1)
    assert left(visits) == {"b", "theirs"}


@pytest.mark.parametrize(
    ("path", "lasts"), [("/gradio_api/heartbeat/x", True), ("/gradio_api/queue/data", True), ("/config", False)]
)
def test_an_open_request_is_a_visit(path, lasts, tmp_path):
    seen = []

    async def app(scope, receive, send):
        seen.append(len(visits.open))
        raise ConnectionError

    visits = Visits(app, tmp_path)
    with pytest.raises(ConnectionError):
        asyncio.run(visits({"type": "http", "path": path}, None, None))
    assert seen == [lasts] and not visits.open


def test_the_sweeper_ends_with_the_program(tmp_path):
    with Visits(lambda *_: None, tmp_path) as visits:
        assert visits.sweeper.is_alive()
    assert not visits.sweeper.is_alive()
