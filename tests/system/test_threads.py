"""An error in the midst of much work ends it at once."""

import threading

import pytest

from sparsevid.system.threads import thread_pool


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_has_not_begun_is_dropped(error):
    """Of a thousand pieces of work, those that threads are at are finished, and no other."""
    begun, go_on = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            go_on.wait()
        return number

    with pytest.raises(error), thread_pool(2) as pool:
        for number in pool.map(work, range(1000)):
            assert number == 0
            threading.Timer(0.2, go_on.set).start()
            raise error
    assert len(begun) <= 4
    with thread_pool(2) as pool:
        assert list(pool.map(str, range(3))) == ["0", "1", "2"]
