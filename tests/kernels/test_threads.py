"""Work shared among threads."""

import multiprocessing
import signal
import threading
import time

import numpy as np
import pytest
import torch

from nfc_gs.benchmarks.loads import make_trainer, shells
from nfc_gs.kernels import rows
from nfc_gs.kernels.threads import share, thread_count, threads_for
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.training.run import use_threads


def test_what_a_worker_raises_is_raised_for_the_caller_after_all_have_ended_and_the_next_round_is_sound() -> None:
    ended = []

    def work(number: int) -> None:
        if number == 1:
            raise ValueError("one")
        time.sleep(0.02)
        ended.append(number)

    with pytest.raises(ValueError, match="one"):
        share(work, 3)
    assert sorted(ended) == [0, 2]
    assert share(lambda number: number, 3) == [0, 1, 2]


def test_what_the_caller_raises_is_raised_after_the_workers_have_ended() -> None:
    ended = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("nought")
        time.sleep(0.02)
        ended.append(number)

    with pytest.raises(ValueError, match="nought"):
        share(work, 2)
    assert ended == [1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal in place of Ctrl-C")
def test_after_ctrl_c_in_the_middle_of_a_round_the_next_round_is_sound() -> None:
    def interrupt(number, frame):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    def late(number: int) -> str:
        if number > 0:
            time.sleep(0.2)
        return "late"

    share(lambda number: number, 3)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            share(late, 3)
        # Lost workers would be waited for without end.
        signal.setitimer(signal.ITIMER_REAL, 10.0)
        for number in range(3):
            assert share(lambda thread, number=number: (number, thread), 3) == [(number, thread) for thread in range(3)]
            time.sleep(0.15)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_pieces_are_worked_on_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(share(lambda number: meeting.wait(), 3)) == [0, 1, 2]


def test_many_rounds_with_and_without_rests_lose_nothing() -> None:
    for number in range(3000):
        # Longer than a worker looks out, about as long, and not at all: it is found asleep, nodding off, and awake.
        if number % 100 == 0:
            time.sleep(0.001 * (number % 3))
        assert share(lambda thread, number=number: (number, thread), 2) == [(number, 0), (number, 1)]


def test_work_may_share_work_and_several_may_share_at_once() -> None:
    assert share(lambda number: share(lambda inner: 10 * number + inner, 2), 2) == [[0, 1], [10, 11]]
    found: list[list[int]] = []

    def often() -> None:
        for _ in range(300):
            found.append(share(lambda number: number, 3))

    callers = [threading.Thread(target=often) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [[0, 1, 2]] * 900


def _shared(answers: "multiprocessing.Queue[list[int]]") -> None:
    answers.put(share(lambda number: number, 3))


def test_a_forked_process_has_workers_of_its_own() -> None:
    share(lambda number: number, 3)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_shared, args=(answers,))
    child.start()
    assert answers.get(timeout=30) == [0, 1, 2]
    child.join()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_every_row_is_worked_on_once(count: int, threads: int) -> None:
    seen = np.zeros(count, np.int64)

    def kernel(first: int, last: int, step: int) -> None:
        seen[first:last] += step

    rows.split(kernel, count, threads, 3)
    assert (seen == 3).all()


def test_torch_runs_on_one_thread_within_a_step_and_on_as_many_as_before_after_it(monkeypatch) -> None:
    trainer = make_trainer(shells(64, 0).seen(20, 20), "regression", Cpu(), 0)
    within, optimize = [], trainer.optimizer.step

    def watched(*arguments: object) -> None:
        within.append((torch.get_num_threads(), thread_count()))
        optimize(*arguments)

    monkeypatch.setattr(trainer.optimizer, "step", watched)
    before = thread_count()
    try:
        use_threads(2)
        trainer.step()
        assert (within, torch.get_num_threads()) == ([(1, 2)], 2)
    finally:
        use_threads(before)
        trainer.photographs.close()
        trainer.held_out.close()


def test_light_work_is_shared_only_where_there_is_much_of_it() -> None:
    before = thread_count()
    use_threads(3)
    try:
        assert [threads_for(numbers) for numbers in (0, 3 * 200 * 200, 3 * 800 * 800)] == [1, 1, 3]
    finally:
        use_threads(before)
