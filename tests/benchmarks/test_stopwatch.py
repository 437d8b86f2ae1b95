"""Times by parts, by a clock that only goes when it is told to."""

import types

from nfc_gs.benchmarks.stopwatch import Stopwatch, Watch


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_moment_counts_for_the_innermost_part_alone():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    with stopwatch.part("outer"):
        clock.now += 1
        with stopwatch.part("inner"):
            clock.now += 2
            with stopwatch.part("inner"):
                clock.now += 4
        clock.now += 8
        stopwatch.call_it("later")
        clock.now += 16
    clock.now += 32
    assert stopwatch.milliseconds == {"outer": 9e3, "inner": 6e3, "later": 16e3}


def test_a_part_that_fails_is_closed_as_well():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    with stopwatch.part("outer"):
        try:
            with stopwatch.part("inner"):
                clock.now += 1
                raise KeyError
        except KeyError:
            clock.now += 2
    assert stopwatch.milliseconds == {"inner": 1e3, "outer": 2e3}


class Parent:
    @staticmethod
    def fixed(number: int) -> int:
        return number + 1

    def bound(self, number: int) -> int:
        return number + 2


class Child(Parent):
    pass


def test_watched_functions_do_what_they_did_and_are_put_back():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    module = types.SimpleNamespace(free=lambda number: number + 3)
    before = vars(Parent)["fixed"], module.free
    with Watch(stopwatch) as watch, stopwatch.part("rest"):
        watch.attribute(Parent, "fixed", "fixed")
        watch.attribute(Child, "bound", "bound", then="after")
        watch.attribute(module, "free", "free")
        assert (Parent.fixed(0), Parent().fixed(0), Child().bound(0), module.free(0)) == (1, 1, 2, 3)
    assert set(stopwatch.milliseconds) == {"rest", "fixed", "bound", "after", "free"}
    assert (vars(Parent)["fixed"], module.free) == before
    assert "bound" not in vars(Child)
