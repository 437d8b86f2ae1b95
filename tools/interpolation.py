"""How much worse a run of a built-in moving scene is half way between the times that it was trained on.

    python tools/interpolation.py runs/toy_arm_s0 ...

The built-in scenes' held-out cameras take two pictures each: one at a training time, one half way to the next. Of both
kinds this prints the PSNR, and the ratio of the mean squared errors: 1 says that between the times nothing is lost.
"""

import argparse
import json
import math
import sys
from pathlib import Path

KINDS = ("test_at_", "test_between_")


def errors(metrics: Path) -> tuple[float, float]:
    """The mean squared errors (values in [0, 1]) at training times and between them.

    Raises:
        ValueError: in one line, when the run is not of such a scene.
    """
    try:
        views = json.loads(metrics.read_text())["per_view"]
    except (OSError, KeyError, json.JSONDecodeError) as problem:
        raise ValueError(f"{metrics}: holds no record of a training: {problem!r}") from None
    means = []
    for kind in KINDS:
        squares = [10 ** (-view["psnr"] / 10) for view in views if view["name"].startswith(kind)]
        if not squares:
            raise ValueError(
                f"{metrics}: no view is named {kind}...; only runs of dynamic.datasets.toy have both kinds"
            )
        means.append(sum(squares) / len(squares))
    return means[0], means[1]


def main() -> None:
    """Parses, reads and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    try:
        for run in parser.parse_args().runs:
            at, between = errors(run / "metrics.json")
            print(
                f"{run.name}: {-10 * math.log10(at):.2f} dB at training times, {-10 * math.log10(between):.2f} dB half way, "
                f"squared error x {between / at:.2f}"
            )
    except ValueError as mistake:
        print(f"interpolation: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
