import os
import signal
import subprocess
import sys
import time

import pytest

from runtime import signals
from tests.conftest import ROOT


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("signum", signals.STOPPING)
def test_a_signal_is_noted_and_interrupts_nothing(signum):
    before = [signal.getsignal(s) for s in signals.STOPPING]
    with signals.StopRequest() as request:
        assert request.signum == 0
        os.kill(os.getpid(), signum)
        wait_for(lambda: request.signum)
        assert request.signum == signum
    assert [signal.getsignal(s) for s in signals.STOPPING] == before


def test_a_closed_terminal_ends_nothing_that_nohup_has_started():
    """It starts programs with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: request.signum)
            assert request.signum == signal.SIGTERM
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_request_may_arrive_twice():
    """A scheduler signals all processes, and torchrun passes on what it gets."""
    with signals.StopRequest() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: request.signum)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert request.signum == signal.SIGTERM


SECOND = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from runtime import signals
signals.SAME_REQUEST = 0.2
def send():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4)
    os.kill(os.getpid(), signal.SIGINT)
with signals.StopRequest():
    threading.Thread(target=send).start()
    {wait}
"""
IN_C = """
    import ctypes
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    while True:
        libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("wait", ["time.sleep(60)", IN_C], ids=["Python", "C"])
def test_a_second_request_ends_at_once(wait):
    """Also while the main thread is in C and sees no signals."""
    started = time.monotonic()
    code = SECOND.format(root=str(ROOT), wait=wait)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.wait(30) == 128 + signal.SIGINT
    assert time.monotonic() - started < 20


def test_processes_started_with_signals_blocked_never_see_them():
    code = "import sys; sys.stdout.write('ready'); sys.stdout.flush(); sys.stdin.read(); print(' and alive')"
    with signals.blocked():
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read(5) == b"ready"
    for signum in signals.STOPPING:
        process.send_signal(signum)
    output, _ = process.communicate(b"", timeout=30)
    assert process.returncode == 0 and output == b" and alive\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
