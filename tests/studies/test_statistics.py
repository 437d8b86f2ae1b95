"""Intervals against Student's published table, curves against lines drawn by hand."""

import pytest

from nfc_gs.studies.results import Look
from nfc_gs.studies.statistics import at_seconds, estimate, seconds_to

# Student's t, two-sided 95 %, by degrees of freedom, as every book prints it (Fisher and Yates 1963, table III).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262, 14: 2.145, 29: 2.045}
PRINTED = 5e-4  # three digits behind the point


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_the_interval_is_students(freedom: int, quantile: float) -> None:
    count = freedom + 1
    # Half of them d above and half d below the mean, or one in the middle: variance is known by hand.
    values = [1.0, -1.0] * (count // 2) + [0.0] * (count % 2)
    deviation = ((count - count % 2) / freedom) ** 0.5
    found = estimate(values)
    assert found is not None and found.mean == 0 and found.deviation == pytest.approx(deviation)
    assert found.half == pytest.approx(quantile * deviation / count**0.5, abs=PRINTED * deviation)


def test_one_number_has_no_interval_and_nothing_has_no_mean() -> None:
    found = estimate([3.0])
    assert found is not None and (found.mean, found.deviation, found.half, found.count) == (3.0, None, None, 1)
    assert not found.above and not found.below
    assert estimate([]) is None


def test_an_estimate_is_above_zero_only_with_its_whole_interval() -> None:
    sure, unsure = estimate([1.0, 1.1, 0.9]), estimate([1.0, -0.5, 0.9])
    assert sure is not None and unsure is not None
    assert sure.above and not sure.below and not unsure.above and not unsure.below


CURVE = (
    Look(step=10, seconds=2.0, psnr=20.0),
    Look(step=20, seconds=4.0, psnr=24.0),
    Look(step=30, seconds=8.0, psnr=25.0),
)


def test_a_curve_is_read_on_straight_lines_and_stays_as_it_ended() -> None:
    assert at_seconds(CURVE, 3.0) == pytest.approx(22.0)
    assert at_seconds(CURVE, 5.0) == pytest.approx(24.25)
    assert (at_seconds(CURVE, 2.0), at_seconds(CURVE, 99.0)) == (20.0, 25.0)
    assert at_seconds(CURVE, 1.9) is None and at_seconds((), 1.0) is None


def test_a_quality_is_reached_where_its_line_crosses() -> None:
    assert seconds_to(CURVE, 22.0) == pytest.approx(3.0)
    assert seconds_to(CURVE, 24.5) == pytest.approx(6.0)
    assert seconds_to(CURVE, 19.0) == 2.0
    assert seconds_to(CURVE, 25.1) is None


def test_a_curve_that_falls_and_rises_again_is_read_where_it_first_got_there() -> None:
    curve = tuple(Look(step=n, seconds=float(n), psnr=psnr) for n, psnr in enumerate((10.0, 20.0, 15.0, 25.0)))
    assert seconds_to(curve, 18.0) == pytest.approx(0.8)
