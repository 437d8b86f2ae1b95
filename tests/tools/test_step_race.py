"""The tool that races states of the project against each other."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def race(step_race, **changes):
    settings = {
        "states": ("old", "new"),
        "works": ("regression", "nfc", "nfc_off", "draw3", "draw15"),
        "threads": (1, 2),
    }
    settings |= {"splats": 5, "size": (40, 30), "seconds": 0.0, "count": 3}
    return step_race.Race(**settings | changes)


def test_ratios_are_of_the_same_turn_not_of_medians(step_race):
    """The machine is thrice as slow in the second turn, for all: no ratio may see that. Numbers by hand."""
    taken = {}
    for state, factor in (("old", 1.0), ("new", 0.5)):
        for work, ms in (("regression", 30), ("nfc", 36), ("nfc_off", 33)):
            for threads in (1, 2):
                taken[step_race.Ask(state, work, threads)] = [factor * ms / threads * slow for slow in (1, 3)]
        for work, ms in (("draw3", 20), ("draw15", 28)):
            taken[step_race.Ask(state, work, 1)] = [factor * ms * slow for slow in (1, 3)]
    text = step_race.report(race(step_race), taken)
    assert "5 Gaussians, 40x30, 2 turns, the best of 3 steps each" in text
    assert "| new | regression | 2 | 15.0 (11.2 to 18.8) | 0.500 (0.500 to 0.500) |" in text
    for name, threads, value in (
        ("step, one thread by more", "1 by 2", "2.000"),
        ("step by rasterization of 3 channels", "1", "1.500"),
        ("rasterization of 15 channels by 3", "1", "1.400"),
        ("step of nfc with its loss by regression's", "2", "1.200"),
        ("step of nfc without its loss by regression's", "1", "1.100"),
        ("nfc over a training, its loss on for 60%", "1", "1.160"),  # .6 x 1.2 + .4 x 1.1
    ):
        for state in ("old", "new"):
            assert f"| {state} | {name} | {threads} | {value} ({value} to {value}) |" in text, name


def test_a_race_of_one_state_runs(tmp_path):
    """All of it, through the command line: worker, turns, table."""
    command = [sys.executable, "tools/step_race.py", ".", "--splats", "50", "--pixels", "24x16", "--seconds", "0"]
    command += ["--threads", "1", "--works", "regression,nfc,draw3"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "50 Gaussians, 24x16, 2 turns" in ended.stdout
    assert "step by rasterization of 3 channels" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["docs"], "it has no nfc_gs"),
        (["no_such_revision"], "neither a folder nor a revision"),
        ([".", "--works", "sleep"], "'sleep' is neither of"),
    ],
)
def test_what_is_not_there_is_one_line(step_race, arguments, complaint, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["step_race", *arguments])
    with pytest.raises(SystemExit) as ended:
        step_race.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and complaint in line


@pytest.mark.parametrize("arguments", [("--threads", "1,a"), ("--threads", "0"), ("--count", "0"), ("--splats", "-1")])
def test_numbers_that_nothing_can_be_timed_with_are_refused(step_race, arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["step_race", ".", *arguments])
    with pytest.raises(SystemExit) as ended:
        step_race.main()
    assert ended.value.code == 2
    assert f"argument {arguments[0]}: invalid" in capsys.readouterr().err
