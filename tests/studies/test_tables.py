"""Tables of made-up runs, whose differences can be done in the head."""

import json
from pathlib import Path

import pytest
from PIL import Image

from nfc_gs.studies.matrix import Cell, StudyError
from nfc_gs.studies.report import write_report
from nfc_gs.studies.results import Look, Record, Results, read_results, write_results
from nfc_gs.studies.statistics import Estimate
from nfc_gs.studies.tables import groups, markdown, paired, signed, spread, verdict

T2 = 4.303  # Student's t, two degrees of freedom


def record(scene: str, arm: str, seed: int, psnr: float, *, threads: int = 1, minutes: float = 1.0, **more) -> Record:
    seconds, psnr = 60.0 * minutes, float(psnr)
    metrics = {
        "psnr": psnr,
        "ssim": 0.9,
        "lpips_alex": 0.1,
        "num_gaussians": 100,
        "train_seconds": seconds,
        "steps": 10,
    }
    curve = (Look(step=5, seconds=seconds / 2, psnr=psnr - 2), Look(step=10, seconds=seconds, psnr=psnr))
    cell = Cell(scene=scene, condition="clean", length=10, arm=arm, seed=seed)
    return Record(cell=cell, threads=threads, metrics=metrics | more, curve=curve)


def results(*records: Record, controls: tuple[str, ...] = ("plain",)) -> Results:
    return Results(
        name="made_up",
        arms=("plain", "other", "new"),
        controls=controls,
        scenes=("fox", "lego"),
        conditions=("clean",),
        words={"arms": {"new": ["new.yaml"]}},
        planned=len(records) + 1,
        records=records,
    )


def row(table: str, *starts: str) -> list[str]:
    """The cells of the row that starts so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return next(cells for cells in rows if cells[: len(starts)] == list(starts))


def test_gains_are_paired_by_seed() -> None:
    # The seeds differ by ten decibels, the arms by 1, 2 and 3 on each of them.
    made = results(
        *[record("fox", "plain", seed, 20 + 10 * seed) for seed in range(3)],
        *[record("fox", "new", seed, 20 + 10 * seed + seed + 1) for seed in range(4)],
    )
    cells = row(paired(made, groups(made)[0], "plain"), "fox", "new")
    # Mean 2, deviation 1, so half the interval is t / sqrt(3); the fourth seed has no partner.
    assert cells[2:4] == ["3", f"+2.00 ± {T2 / 3**0.5:.2f}"]
    assert cells[4] == "0.0000 ± 0.0000"


def test_a_lower_lpips_is_a_gain() -> None:
    made = results(record("fox", "plain", 0, 20), record("fox", "new", 0, 20, lpips_alex=0.08))
    assert row(paired(made, groups(made)[0], "plain"), "fox", "new")[5] == "+0.0200 (one)"


def test_what_was_not_computed_is_not_a_number() -> None:
    made = results(record("fox", "plain", 0, 20), record("fox", "new", 0, 20, lpips_alex=None))
    assert row(paired(made, groups(made)[0], "plain"), "fox", "new")[5] == "–"
    assert "not computed" in markdown(made, [], "it")


def test_equal_time_is_when_the_control_ends() -> None:
    # Twice as slow: when the control ends at one minute, the arm is at its half, 2 dB below its end.
    made = results(record("fox", "plain", 0, 20), record("fox", "new", 0, 21, minutes=2.0))
    cells = row(paired(made, groups(made)[0], "plain"), "fox", "new")
    assert cells[6] == "−1.00 (one)"
    # It reaches 20 dB half way between one minute (19 dB) and two (21 dB), and costs twice as much.
    assert cells[7:9] == ["1.50", "2.00"]


def test_an_arm_that_ends_first_keeps_what_it_had() -> None:
    made = results(record("fox", "plain", 0, 20), record("fox", "new", 0, 21, minutes=0.5))
    cells = row(paired(made, groups(made)[0], "plain"), "fox", "new")
    assert cells[6] == "+1.00 (one)"
    assert cells[7] == f"{(0.25 + 0.25 * 0.5):.2f}"  # from 19 dB at a quarter to 21 dB at a half of the control's time


def test_runs_on_different_threads_are_not_compared_in_time() -> None:
    made = results(record("fox", "plain", 0, 20), record("fox", "new", 0, 21, threads=2))
    assert row(paired(made, groups(made)[0], "plain"), "fox", "new")[6:9] == ["–", "–", "–"]


def test_the_mean_over_scenes_has_both_intervals() -> None:
    # On fox the arm gains 1 with every seed, on lego 3 with every seed.
    made = results(
        *[record(scene, "plain", seed, 20 + seed) for scene in ("fox", "lego") for seed in range(3)],
        *[record("fox", "new", seed, 21 + seed) for seed in range(3)],
        *[record("lego", "new", seed, 23 + seed) for seed in range(3)],
    )
    table = paired(made, groups(made)[0], "plain")
    # Other seeds would change nothing; of two scenes nobody knows: t of one degree of freedom times sqrt(2) / sqrt(2).
    assert row(table, "**mean of these 2**", "new")[3] == "+2.00 ± 0.00"
    assert row(table, "mean over scenes", "new")[3] == "+2.00 ± 12.71"


def test_the_verdict_names_the_control_that_is_hardest_to_beat() -> None:
    made = results(
        *[record("fox", "plain", seed, 20 + 0.1 * seed) for seed in range(3)],
        *[record("fox", "other", seed, 20.5 + 0.1 * seed) for seed in range(3)],
        *[record("fox", "new", seed, 21 + 0.1 * seed) for seed in range(3)],
        controls=("plain", "other"),
    )
    assert row(verdict(made), "clean")[3] == "**+0.50 ± 0.00 (other)**"


def test_an_arm_that_was_not_run_beside_every_control_is_no_winner() -> None:
    made = results(
        *[record("fox", arm, seed, 20 + 0.1 * seed + (arm == "new")) for arm in ("plain", "new") for seed in range(3)],
        controls=("plain", "other"),
    )
    assert row(verdict(made), "clean")[3] == "+1.00 ± 0.00 (plain)"


@pytest.mark.parametrize(
    ("values", "text"), [([1.0], "1.00"), ([1.0, 2.0, 3.0], "2.00 ± 1.00"), ([1.0, None], "not computed")]
)
def test_spread_is_the_sample_standard_deviation(values: list, text: str) -> None:
    assert spread(values, 2) == text


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert signed(Estimate(-0.001, 0.1, 0.2, 3), 2) == "0.00 ± 0.20"


def test_every_table_and_plot_is_made_of_the_json_alone(tmp_path: Path) -> None:
    made = results(
        *[
            record(scene, arm, seed, 20 + seed)
            for scene in ("fox", "lego")
            for arm in ("plain", "new")
            for seed in range(2)
        ]
    )
    page = write_report(made, tmp_path / "first")
    again = write_report(read_results(tmp_path / "first/made_up.json"), tmp_path / "second")
    for name in ("made_up.json", "made_up.md", "made_up_gains.png", "made_up_curves.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    assert page.read_text() == again.read_text() and "made_up_gains.png" in page.read_text()
    assert Image.open(tmp_path / "first/made_up_curves.png").getextrema() != ((255, 255),) * 3


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = results(record("fox", "plain", 0, 20), record("lego", "new", 3, 21))
    write_results(made, tmp_path / "it.json")
    assert read_results(tmp_path / "it.json") == made
    assert json.loads((tmp_path / "it.json").read_text())["records"][1]["cell"]["seed"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("{", "cannot be read"), ("{}", "is not a study's results"), ('{"format": 1}', "lacks")],
)
def test_what_is_no_results_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "it.json").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_results(tmp_path / "it.json")
