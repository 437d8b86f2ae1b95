"""A study's results as Markdown: what each arm reaches, and what it gains over each control, seed by seed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nfc_gs.studies.results import Record, Results
from nfc_gs.studies.statistics import Estimate, at_seconds, estimate, seconds_to

MINUS = "−"
# How a gain is shown: name, digits, and what is paired. Of LPIPS less is better, so its gain is the control's minus the arm's.
Gain = Callable[[Record, Record], float | None]


@dataclass(frozen=True)
class Group:
    """What is compared: the records of one condition and length, by scene, arm and seed."""

    condition: str
    length: int
    records: dict[tuple[str, str], dict[int, Record]]

    def pairs(self, scene: str, arm: str, control: str) -> dict[int, tuple[Record, Record]]:
        """Arm and control of the same seed."""
        one, other = self.records.get((scene, arm), {}), self.records.get((scene, control), {})
        return {seed: (one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())}

    def gains(self, scene: str, arm: str, control: str, gain: Gain) -> dict[int, float]:
        """What the arm gains over the control, by seed, where both numbers are known."""
        found = {seed: gain(*pair) for seed, pair in self.pairs(scene, arm, control).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean_gains(self, scenes: Sequence[str], arm: str, control: str, gain: Gain) -> list[float]:
        """For each seed that all these scenes have, the mean gain over them."""
        by_scene = [self.gains(scene, arm, control, gain) for scene in scenes]
        if not by_scene:
            return []
        seeds = sorted(set.intersection(*(set(gains) for gains in by_scene)))
        return [sum(gains[seed] for gains in by_scene) / len(by_scene) for seed in seeds]

    def scenes(self, names: Iterable[str]) -> list[str]:
        """Those of these scenes that anything was run on."""
        there = {scene for scene, _ in self.records}
        return [name for name in names if name in there]

    def compared(self, scenes: Iterable[str], arm: str, control: str) -> list[str]:
        """The scenes on which both were run."""
        return [scene for scene in self.scenes(scenes) if self.pairs(scene, arm, control)]


def psnr_gain(arm: Record, control: Record) -> float | None:
    """In dB, after equal steps."""
    return _difference(arm, control, "psnr")


def ssim_gain(arm: Record, control: Record) -> float | None:
    """After equal steps."""
    return _difference(arm, control, "ssim")


def lpips_gain(arm: Record, control: Record) -> float | None:
    """After equal steps: by how much the arm's LPIPS is lower."""
    return _difference(control, arm, "lpips_alex")


def equal_time_gain(arm: Record, control: Record) -> float | None:
    """In dB, when the control has come to its end; an arm that had ended before counts as it ended."""
    if arm.threads != control.threads:
        return None
    reached = at_seconds(arm.curve, control.metrics["train_seconds"])
    return None if reached is None else reached - control.metrics["psnr"]


def time_ratio(arm: Record, control: Record) -> float | None:
    """The time in which the arm reaches what the control ends with, in shares of the control's; None if it never does."""
    if arm.threads != control.threads:
        return None
    seconds = seconds_to(arm.curve, control.metrics["psnr"])
    return None if seconds is None else seconds / control.metrics["train_seconds"]


def cost(arm: Record, control: Record) -> float | None:
    """Seconds for the same steps, in multiples of the control's."""
    if arm.threads != control.threads:
        return None
    return arm.metrics["train_seconds"] / control.metrics["train_seconds"]


def groups(results: Results) -> list[Group]:
    """One for each condition and length, in the study's order."""
    found: dict[tuple[str, int], dict[tuple[str, str], dict[int, Record]]] = {}
    for record in results.records:
        cell = record.cell
        group = found.setdefault((cell.condition, cell.length), {})
        group.setdefault((cell.scene, cell.arm), {})[cell.seed] = record
    ordered = sorted(found, key=lambda key: (results.conditions.index(key[0]), key[1]))
    return [Group(condition, length, found[condition, length]) for condition, length in ordered]


def markdown(results: Results, pictures: Sequence[str], command: str) -> str:
    """The whole page; `pictures` are file names beside it, `command` is what writes it anew."""
    parts = [
        f"# Study: {results.name}",
        "",
        f"{len(results.records)} of {results.planned} runs. Written by `{command}` from the JSON beside it; "
        "[how it is reckoned](#how-to-read-this).",
        "",
        "## Where it helps",
        "",
        verdict(results),
        "",
        *[f"![{name}]({name})\n" for name in pictures],
    ]
    for group in groups(results):
        parts += [f"## {group.condition}, {group.length:,} steps", "", absolute(results, group), ""]
        for control in results.controls:
            table = paired(results, group, control)
            if table:
                parts += [f"Against **{control}**, by seed:", "", table, ""]
    parts += [
        "## Arms, scenes and conditions",
        "",
        _words(results),
        "",
        "## How to read this",
        "",
        _READING,
        "",
        _runs(results),
        "",
    ]
    return "\n".join(parts)


def verdict(results: Results) -> str:
    """For each condition and length and each arm: the smallest mean gain over any control."""
    others = [arm for arm in results.arms if arm not in results.controls]
    if not others or not results.controls:
        return "No arm is compared: all are controls, or there is none."
    lines = [
        "PSNR in dB against the *best* control, mean over scenes with its 95 % interval over seeds. **Bold**: above every "
        "control by more than the interval; *italic*: below one by more than it; the rest is neither.",
        "",
        "| condition | steps | scenes | " + " | ".join(others) + " |",
        "|---|---|---|" + "---|" * len(others),
    ]
    for group in groups(results):
        shown = [_against_best(results, group, arm) for arm in others]
        lines.append(
            f"| {group.condition} | {group.length:,} | {len(group.scenes(results.scenes))} | "
            + " | ".join(shown)
            + " |"
        )
    return "\n".join(lines)


def _against_best(results: Results, group: Group, arm: str) -> str:
    gains: dict[str, Estimate] = {}
    for control in results.controls:
        scenes = group.compared(results.scenes, arm, control)
        found = estimate(group.mean_gains(scenes, arm, control, psnr_gain))
        if found is not None:
            gains[control] = found
    if not gains:
        return "–"
    best = min(gains, key=lambda control: gains[control].mean)
    text = f"{signed(gains[best], 2)} ({best})"
    if len(gains) == len(results.controls) and all(gain.above for gain in gains.values()):
        return f"**{text}**"
    return f"*{text}*" if any(gain.below for gain in gains.values()) else text


def absolute(results: Results, group: Group) -> str:
    """What each arm reaches on each scene: mean ± sample standard deviation over seeds."""
    lines = [
        "| scene | arm | seeds | PSNR dB | SSIM | LPIPS-Alex | Gaussians | minutes | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scene in group.scenes(results.scenes):
        for arm in results.arms:
            records = list(group.records.get((scene, arm), {}).values())
            if not records:
                continue
            cells = [
                spread([record.metrics.get(key) for record in records], digits)
                for key, digits in (("psnr", 2), ("ssim", 4), ("lpips_alex", 4), ("num_gaussians", 0))
            ]
            cells.append(spread([record.metrics["train_seconds"] / 60 for record in records], 2))
            cells.append(spread([record.metrics.get("peak_megabytes") for record in records], 0))
            lines.append(f"| {scene} | {arm} | {len(records)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired(results: Results, group: Group, control: str) -> str:
    """What the other arms gain over a control; empty if nothing can be compared."""
    kinds: list[tuple[str, Gain, int]] = [
        ("PSNR dB", psnr_gain, 2),
        ("SSIM", ssim_gain, 4),
        ("LPIPS-Alex", lpips_gain, 4),
        ("PSNR dB at equal time", equal_time_gain, 2),
    ]
    rows: list[str] = []
    arms = [arm for arm in results.arms if arm != control]
    for arm in arms:
        scenes = group.compared(results.scenes, arm, control)
        for scene in scenes:
            gains = [
                signed(estimate(group.gains(scene, arm, control, gain).values()), digits) for _, gain, digits in kinds
            ]
            rows.append(_row(scene, arm, len(group.pairs(scene, arm, control)), gains, group, [scene], control))
        if len(scenes) > 1:
            means = [group.mean_gains(scenes, arm, control, gain) for _, gain, _ in kinds]
            gains = [signed(estimate(m), digits) for m, (_, _, digits) in zip(means, kinds, strict=True)]
            rows.append(_row(f"**mean of these {len(scenes)}**", arm, len(means[0]), gains, group, scenes, control))
            over_scenes = [signed(_over_scenes(group, scenes, arm, control, gain), digits) for _, gain, digits in kinds]
            rows.append(_row("mean over scenes", arm, 0, over_scenes, group, scenes, control))
    if not rows:
        return ""
    head = [
        "| scene | arm | pairs | " + " | ".join(name for name, _, _ in kinds) + " | time to its quality | cost |",
        "|---|---|---|" + "---|" * (len(kinds) + 2),
    ]
    return "\n".join([*head, *rows])


def _row(label: str, arm: str, count: int, gains: list[str], group: Group, scenes: Sequence[str], control: str) -> str:
    pairs = [pair for scene in scenes for pair in group.pairs(scene, arm, control).values()]
    costs = [value for pair in pairs if (value := cost(*pair)) is not None]
    times = [time_ratio(*pair) for pair in pairs]
    reached = [value for value in times if value is not None]
    shown = "–"
    if reached:
        shown = f"{sum(reached) / len(reached):.2f}" + (
            "" if len(reached) == len(pairs) else f" ({len(reached)} of {len(pairs)})"
        )
    price = f"{sum(costs) / len(costs):.2f}" if costs else "–"
    return f"| {label} | {arm} | {count or ''} | " + " | ".join(gains) + f" | {shown} | {price} |"


def _over_scenes(group: Group, scenes: Sequence[str], arm: str, control: str, gain: Gain) -> Estimate | None:
    """The scenes' mean gains as a sample of all scenes there might be."""
    by_scene = [estimate(group.gains(scene, arm, control, gain).values()) for scene in scenes]
    return estimate(found.mean for found in by_scene if found is not None)


def spread(values: Sequence[float | None], digits: int) -> str:
    """`mean ± sample standard deviation`, the one value, or that some were not computed."""
    known = [value for value in values if value is not None]
    found = estimate(known)
    if found is None or len(known) < len(values):
        return "not computed"
    shown = f"{found.mean:.{digits}f}"
    return shown if found.deviation is None else f"{shown} ± {found.deviation:.{digits}f}"


def signed(found: Estimate | None, digits: int) -> str:
    """A gain with its sign and half the width of its interval; `+0.12 (one)` where there is only one pair."""
    if found is None:
        return "–"
    # What rounds to nothing has no sign.
    rounded = round(found.mean, digits)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    shown = f"{sign}{abs(rounded):.{digits}f}"
    return f"{shown} (one)" if found.half is None else f"{shown} ± {found.half:.{digits}f}"


def _difference(one: Record, other: Record, key: str) -> float | None:
    values = one.metrics.get(key), other.metrics.get(key)
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def _words(results: Results) -> str:
    """What the names stand for."""
    lines = []
    for axis, names in results.words.items():
        for name, words in names.items():
            meaning = " ".join(f"`{word}`" for word in words) or "nothing more"
            lines.append(f"- {axis}{f' **{name}**' if name else ''}: {meaning}")
    return "\n".join(lines)


def _runs(results: Results) -> str:
    """Commits, devices and versions of the runs, as they recorded them."""
    said: dict[str, int] = {}
    for record in results.records:
        metrics = record.metrics
        versions = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
        changes = " with uncommitted changes" if metrics.get("uncommitted_changes") else ""
        line = f"commit {metrics.get('commit')}{changes}, {metrics.get('device')}, {versions}"
        said[line] = said.get(line, 0) + 1
    return "\n".join(f"- {count} runs: {line}" for line, count in sorted(said.items()))


_READING = """\
Held-out views only, always clean; the last model of a run, never its best. Tables of what is reached: mean ± sample
standard deviation over seeds. Tables of gains: the difference is taken between runs of the same seed, and what stands is its
mean ± half the width of its 95 % interval by Student's t; `(one)` is a single pair, of which there is no interval. Above zero
is better, for LPIPS as well.

- *mean of these N*: for each seed the mean over the scenes; the interval says what other seeds would change on these scenes.
- *mean over scenes*: the scenes' means as a sample; the interval says what other scenes would change, and is wide when they are
  few.
- *PSNR at equal time*: the arm's PSNR when the control ends, on straight lines between looks at the held-out views, less the
  control's at its end. An arm that is ahead by then may be so because its rates have fallen further; one that takes longer has
  not come to its end.
- *time to its quality*: when the arm first reaches the PSNR that the control ends with, in shares of the control's time; `(2 of
  3)` says how many runs reach it at all. *cost*: time for equal steps. Both are of training alone, without looks.
- Runs on different numbers of threads are not compared in time. Minutes depend on what else the machine did.
- One in twenty intervals of no effect misses zero: of many arms some will, by chance."""
