"""Signals raise a flag and nothing else, and leave no trace."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context

import pytest

from sparsevid.training.signals import SIGNALS, StopRequest, unheard_by_children


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_raises_the_flag_and_nothing_else(number):
    with StopRequest() as stop:
        assert not stop.flag and stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.flag and stop.signal_name == signal.Signals(number).name


def test_others_may_ask_as_a_signal_does():
    with StopRequest() as stop:
        stop.ask("the clock")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.flag and stop.signal_name == "the clock"


def test_first_signal_keeps_its_name():
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal_name == "SIGUSR1"


def test_handlers_are_as_before_afterwards_even_after_an_error():
    before = [signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)]
    with pytest.raises(KeyError), StopRequest() as stop:
        assert signal.getsignal(signal.SIGINT) == before[-1]
        assert all(signal.getsignal(number) == stop._note for number in SIGNALS)
        raise KeyError
    assert [signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)] == before


def test_another_thread_catches_nothing():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((stop.flag, [signal.getsignal(number) for number in SIGNALS]))

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_second_signal_ends_what_is_being_built():
    """Also where the main thread waits in C++, and no handler of Python's runs; a loop that can save is let alone."""
    script = """
import os
import sys
import time
from datetime import timedelta
from torch.distributed import TCPStore
from sparsevid.training.signals import StopRequest
with StopRequest() as stop:
    stop.can_save = sys.argv[1] == "saving"
    store = TCPStore("127.0.0.1", 0, is_master=True)
    print("waiting", flush=True)
    try:
        store.wait(["never"], timedelta(seconds=int(sys.argv[2])))
    except RuntimeError:
        time.sleep(0)  # a call, after which Python's handlers run
        print("heard", stop.signal_name, flush=True)
    os._exit(0)  # before the handlers of before are back
"""
    for kind, seconds, code in (("building", 60, 128 + signal.SIGTERM), ("saving", 3, 0)):
        command = [sys.executable, "-c", script, kind, str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "waiting\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        out, err = process.communicate()
        assert process.returncode == code, err
        assert ("ended by a second signal" in err) == (code != 0) and ("heard SIGTERM" in out) == (code == 0)


def test_children_do_not_hear_what_their_parent_does():
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with StopRequest() as stop:
        with unheard_by_children():
            child = context.Process(target=answer, args=(theirs,))
            child.start()
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # a process's signal could go to another thread
            assert not stop.flag
        assert stop.signal_name == "SIGUSR1"
    ours.send("are you there?")
    assert ours.poll(60) and ours.recv() == "yes"
    for number in SIGNALS:
        os.kill(child.pid, number)
    ours.send("still?")
    assert ours.poll(60) and ours.recv() == "yes"
    child.join(60)
    assert child.exitcode == 0


def answer(connection):
    for _ in range(2):
        connection.recv()
        connection.send("yes")
