from types import SimpleNamespace

import pytest

from nfc_gs.evaluation import Evaluation
from nfc_gs.training.callbacks import clock
from nfc_gs.training.callbacks.base import Report, Session


def only(kind, **fields):
    """One of `kind` of which nothing but these fields is known."""
    one = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(one, name, value)
    return one


def hear(listener, clock_time, step, seconds, psnr=None):
    clock_time[0] += seconds
    evaluation = None if psnr is None else only(Evaluation, scores=(SimpleNamespace(psnr=psnr),))
    listener.hear(only(Report, step=step, evaluation=evaluation, num_gaussians=10 * step))


def test_steps_are_added_up_and_looks_are_not_counted(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "process_time", lambda: now[0])
    listener = clock.Spec().start(only(Session, folder=tmp_path, first_step=0))
    hear(listener, now, 1, 5.0)
    hear(listener, now, 2, 2.0)
    hear(listener, now, 3, 2.5 + 40.0, psnr=20.5)  # a look of 40 seconds: the step counts as its predecessor's 2
    hear(listener, now, 4, 3.0)
    hear(listener, now, 5, 90.0, psnr=21.25)
    lines = (tmp_path / clock.FILE).read_text().split()
    assert lines == ["step,cpu_seconds,psnr,num_gaussians", "3,9.000,20.5000,30", "5,15.000,21.2500,50"]


def test_a_resumed_run_leaves_the_clock_as_it_was_and_says_so(tmp_path, caplog):
    (tmp_path / clock.FILE).write_text("as it was")
    listener = clock.Spec().start(only(Session, folder=tmp_path, first_step=7))
    hear(listener, [0.0], 8, 1.0, psnr=20.0)
    assert (tmp_path / clock.FILE).read_text() == "as it was"
    assert "does not go on" in caplog.text


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    with pytest.raises(clock.UserError, match=r"clock\.csv: cannot be written"):
        clock.Spec().start(only(Session, folder=tmp_path / "missing", first_step=0))
