"""Signals raise a flag and nothing else, and leave no trace."""

import os
import signal
import threading
from multiprocessing import get_context

import pytest

from sparsevid.training.signals import SIGNALS, StopRequest, unheard_by_children


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_raises_the_flag_and_nothing_else(number):
    with StopRequest() as stop:
        assert not stop.flag and stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.flag and stop.signal_name == signal.Signals(number).name


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
