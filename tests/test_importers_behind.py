"""What is put behind is done in order, one thing at a time, and its errors are the caller's."""

from __future__ import annotations

import threading

import pytest

from moe_probe.importers.behind import behind


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("behind")]


def test_things_are_done_in_order_by_another_thread_and_at_most_one_waits():
    done, begun = [], threading.Event()
    go = threading.Event()

    def first():
        begun.set()
        go.wait(30)
        done.append(threading.get_ident())

    with behind() as disk:
        disk.put(first)
        assert begun.wait(30)
        assert done == []  # the caller goes on meanwhile
        go.set()
        disk.put(lambda: done.append("second"))
        assert len(done) >= 1  # the first was waited for
        disk.wait()
        assert done[1:] == ["second"]
    assert done[0] != threading.get_ident()
    assert not threads()


@pytest.mark.parametrize("how", ["put", "wait", "leave"])
def test_an_error_is_raised_when_next_something_is_put_or_waited_for(how):
    done = []

    def use():
        with behind() as disk:
            disk.put(lambda: 1 / 0)
            if how == "put":
                disk.put(lambda: done.append("after"))
            elif how == "wait":
                disk.wait()

    with pytest.raises(ZeroDivisionError):
        use()
    assert done == []
    assert not threads()


def test_an_error_of_the_caller_waits_for_what_is_being_done():
    done = []

    def use():
        with behind() as disk:
            disk.put(lambda: done.append(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert done == [1]
    assert not threads()
