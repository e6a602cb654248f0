import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb

import train
import wandb_utils
from runtime.errors import DataError, UsageError
from tests.conftest import DIGITS_ARGS, ROOT
from tests.forked import run_forked

VARIABLES = ("WANDB_KEY", "WANDB_API_KEY", "ENTITY", "PROJECT")
KEY = "k" * 40


def test_variables_are_required_online_only(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for variable in VARIABLES:
        with pytest.raises(UsageError, match=f"environment variable {variable}"):
            wandb_utils.required(variable)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_utils.required("ENTITY") == ""
    wandb_utils.check_login()  # and no key is asked for
    monkeypatch.setenv("ENTITY", "me")
    assert wandb_utils.required("ENTITY") == "me"


# ---- logging in ----------------------------------------------------------------------------------------------------


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every request so, and what it was sent as a key."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "invalid API key"}]}')

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", keys
        serving.shutdown()


def log_in(home, **env: str) -> str:
    """`check_login` in a process of its own, for a user whose home this is: what it says, or nothing."""
    code = "import wandb_utils; from runtime import errors; errors.run_program(wandb_utils.check_login)"
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES and not k.startswith("WANDB")}
    environment = {**kept, "HOME": str(home), "ENTITY": "me", "PROJECT": "mine", "WANDB_SILENT": "true", **env}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    lines = [line for line in ran.stderr.splitlines() if line]
    assert ran.returncode == len(lines) == 0 or (ran.returncode in (1, 2) and len(lines) == 1), ran.stderr
    return ran.stderr


def test_a_key_that_the_server_refuses_is_one_line(tmp_path):
    with server(401) as (url, keys):
        said = log_in(tmp_path, WANDB_KEY=KEY, WANDB_API_KEY="o" * 40, WANDB_BASE_URL=url)
    assert "the key is not valid, or the server does not answer" in said and f"{url}: invalid API key" in said
    assert KEY in base64.b64decode(keys[0].removeprefix("Basic ")).decode()
    assert not (tmp_path / ".netrc").exists()


ONCE = {"WANDB_X_GRAPHQL_RETRY_MAX": "1"}  # or wandb's service may go on asking when the program ends


@pytest.mark.drill
def test_a_server_that_is_not_there_is_one_line(tmp_path):
    said = log_in(tmp_path, WANDB_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:1", WANDB_HTTP_TIMEOUT="1", **ONCE)
    assert "the server does not answer" in said and "http://127.0.0.1:1" in said


@pytest.mark.parametrize(
    "source", ["WANDB_KEY", *(pytest.param(name, marks=pytest.mark.drill) for name in ("WANDB_API_KEY", "netrc"))]
)
def test_where_the_key_comes_from(tmp_path, source):
    """Whatever holds one is asked; that it is too short is seen without a server."""
    if source == "netrc":  # as `wandb login` writes it
        (tmp_path / ".netrc").write_text("machine 127.0.0.1:1\n  login user\n  password short\n")
        (tmp_path / ".netrc").chmod(0o600)
    said = log_in(tmp_path, WANDB_BASE_URL="http://127.0.0.1:1", **({} if source == "netrc" else {source: "short"}))
    assert "API key must have 40+ characters, has 5" in said
    assert source == "netrc" or f"{source} invalid" in said


@pytest.mark.drill
def test_without_a_key(tmp_path):
    assert "set WANDB_KEY or WANDB_API_KEY, or run `wandb login`" in log_in(tmp_path)


def test_a_bad_key_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for variable, value in {"WANDB_KEY": "short", "WANDB_API_KEY": "", "ENTITY": "me", "PROJECT": "mine"}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(DataError, match="WANDB_KEY invalid"):
        train.main([*DIGITS_ARGS, "--results-dir", str(tmp_path / "results"), "--max-steps", "1", "--wandb"])
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_begin_is_one_line(monkeypatch):
    def refuse(**settings):
        raise wandb.errors.CommError("entity me not found\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(DataError, match=r"^--wandb, ENTITY me, PROJECT mine: entity me not found$"):
        wandb_utils.initialize(train.make_parser().parse_args(DIGITS_ARGS), "me", "exp", "mine", "id")


# ---- whose run it is -----------------------------------------------------------------------------------------------


def test_a_run_belongs_to_a_folder(tmp_path):
    """It continues with it, also under another name or from a backup; a fresh run and a copy get their own."""
    folder = tmp_path / "a"
    folder.mkdir()
    first = wandb_utils.run_id(folder, is_new=True)
    assert wandb_utils.run_id(folder, is_new=False) == first
    shutil.copytree(folder, tmp_path / "backup")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert wandb_utils.run_id(folder, is_new=False) == first
    again = wandb_utils.run_id(folder, is_new=True)
    assert again != first
    first, folder = again, folder.rename(tmp_path / "renamed")
    assert wandb_utils.run_id(folder, is_new=False) == first
    shutil.copytree(folder, tmp_path / "copy")
    copied = wandb_utils.run_id(tmp_path / "copy", is_new=False)
    assert copied != first and wandb_utils.run_id(tmp_path / "copy", is_new=False) == copied
    assert wandb_utils.run_id(folder, is_new=True) not in (first, copied)
    for damaged in ("", "[]", "{}", "{"):
        (folder / wandb_utils.RUN_FILE).write_text(damaged)
        fresh = wandb_utils.run_id(folder, is_new=False)
        assert fresh not in (first, copied) and wandb_utils.run_id(folder, is_new=False) == fresh


def test_training_with_wandb_offline(tmp_path):
    """The real wandb, writing its run to disk, under the folder's id; numbers and a picture are in it."""
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    steps = ["--max-steps", "2", "--log-every", "1", "--sample-every", "2"]
    run_forked("train.py", *DIGITS_ARGS, *steps, "--wandb", cwd=tmp_path, **env)
    (kept,) = tmp_path.rglob(wandb_utils.RUN_FILE)
    (run,) = (tmp_path / "wandb").glob(f"offline-run-*-{json.loads(kept.read_text())['id']}")
    assert list(run.glob("*.wandb")) and list(run.rglob("*.png"))
