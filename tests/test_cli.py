"""The command line as a shell sees it: exit status, and what is said on the way out."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from nfc_gs import cli

LEAVE = """
import os, signal, sys, time
from nfc_gs import cli
def run(chosen):
    import nfc_gs.datasets.colmap
    os.kill(os.getpid(), signal.{name})
    time.sleep(20)
cli.run_kinds = run
sys.exit(cli.main(["kinds"]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_being_told_to_stop_before_the_first_step_is_one_line(name):
    done = subprocess.run([sys.executable, "-c", LEAVE.format(name=name)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nfc-gs: interrupted\n")


@pytest.mark.parametrize("family", ["codes", "losses strategies"])
def test_a_reader_that_goes_away_ends_the_listing_in_silence(family):
    lists = f"for f in {family}; do {sys.executable} -m nfc_gs.cli kinds $f; echo $? >&2; done | true"
    done = subprocess.run(["bash", "-c", lists], capture_output=True, text=True, timeout=60)
    assert set(done.stderr.split()) == {"141"}


@pytest.mark.parametrize("flag", ["--times -0.1", "--times -0.1,0.5", "--times=-0.1,0.5", "--time -1e-3", "--time -.5"])
def test_a_time_before_the_first_moment_is_named_however_it_is_given(flag, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["render", "run", *flag.split(), "--output", "out"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1
    assert "is no time: the first moment is 0 and the last is 1" in said


def test_a_stop_that_numba_wrapped_is_an_interruption_all_the_same(monkeypatch, capsys):
    def wrapped(chosen):
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr(cli, "run_doctor", wrapped)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "nfc-gs: interrupted\n"


def test_more_than_the_memory_holds_is_one_line(monkeypatch, capsys):
    def torch_asks(chosen):
        torch.empty(1 << 60, dtype=torch.uint8)

    def numpy_asks(chosen):
        np.empty(1 << 60, np.uint8)

    for ask, amount in ((torch_asks, "1152921504606846976 bytes"), (numpy_asks, "1.00 EiB")):
        monkeypatch.setattr(cli, "run_doctor", ask)
        assert cli.main(["doctor"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"out of memory ({amount} were asked for at once)" in said


def test_an_error_that_has_nothing_to_do_with_memory_is_not_hidden(monkeypatch):
    def broken(chosen):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "run_doctor", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["doctor"])
