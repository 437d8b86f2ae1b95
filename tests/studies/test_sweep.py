"""The queue, with workers that only pretend to train; and one study, for real, of the toy scene."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from nfc_gs import cli
from nfc_gs.config import UserError, write
from nfc_gs.studies.matrix import Matrix, Planned, StudyError, plan, read_matrix
from nfc_gs.studies.results import collect, read_curve
from nfc_gs.studies.sweep import Outcome, State, look, sweep
from nfc_gs.studies.watch import Watch
from nfc_gs.studies.workers.base import Order, Process, Workers
from nfc_gs.studies.workers.local import Local
from nfc_gs.studies.workers.slurm import Slurm
from tests.conftest import REPOSITORY

STUDY = f"""
arms:
  regression: [{REPOSITORY}/configs/methods/regression.yaml]
  nfc: [{REPOSITORY}/configs/methods/nfc.yaml]
controls: [regression]
scenes:
  toy: [{REPOSITORY}/configs/toy.yaml]
settings: [dataset.size=40, dataset.num_train=6, dataset.num_test=2, dataset.points=200, dataset.supersample=1,
  strategy.cap_max=300, callbacks.checkpoints.every=10, callbacks.tensorboard.histograms=0]
lengths: [10]
seeds: [0, 1]
evaluations: 2
"""


class Pretence(Process):
    """Ends at the first look with a status of its own."""

    def __init__(self, status: int | None) -> None:
        self.ends = status
        self.stopped = 0

    def status(self) -> int | None:
        return self.ends if not self.stopped else 130

    def stop(self) -> None:
        self.stopped += 1


class Pretenders(Workers):
    """Writes what a training would, or ends as a script says: a list of exit statuses for each run's tries."""

    def __init__(self, runs: list[Planned], script: dict[str, list[int | None]]) -> None:
        self.runs = {run.cell.name: run for run in runs}
        self.script = script
        self.orders: list[Order] = []
        self.processes: list[Pretence] = []

    def start(self, order: Order) -> Pretence:
        self.orders.append(order)
        status = self.script.get(order.name, [0]).pop(0) if self.script.get(order.name) else 0
        order.log.parent.mkdir(parents=True, exist_ok=True)
        order.log.write_text("step 1\nnfc-gs: it is broken\n")
        if status == 0:
            finish(self.runs[order.name])
        self.processes.append(Pretence(status))
        return self.processes[-1]


def finish(run: Planned, steps: int | None = None) -> None:
    """A folder as a training leaves it, as far as the queue looks."""
    folder = run.experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    write(run.experiment, folder / "config.yaml")
    metrics = {"psnr": 20.0, "steps": steps or run.experiment.steps, "checkpoint": "last"}
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "little.yaml"
    path.write_text(STUDY + f"output: {tmp_path}/runs\n")
    return path


def prepared(study: Path, *overrides: str) -> tuple[Matrix, list[Planned]]:
    matrix = read_matrix(study, overrides)
    return matrix, plan(matrix, study, threads=1)


def swept(matrix: Matrix, runs: list[Planned], workers: Workers, **options) -> tuple[Outcome, str]:
    said = io.StringIO()
    # Not `replace`, which would check that these are among the kinds.
    object.__setattr__(matrix, "workers", workers)
    wishes = {"jobs": 1, "retries": 1, "budget_hours": None} | options
    outcome = sweep(matrix, runs, watch=Watch(Console(file=said, width=200), None), **wishes)
    return outcome, said.getvalue()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfc_gs.studies.sweep.LOOK", 0.001)


def test_what_is_finished_is_not_run_again(study: Path) -> None:
    matrix, runs = prepared(study)
    first = Pretenders(runs, {})
    assert len(swept(matrix, runs, first)[0].finished) == len(first.orders) == 4
    second = Pretenders(runs, {})
    outcome, said = swept(matrix, runs, second)
    assert len(outcome.finished) == 4 and not second.orders and "4 runs, of which 4 are finished" in said


def test_a_new_run_gets_its_settings_and_its_threads(study: Path) -> None:
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {})
    swept(matrix, runs, workers)
    order = workers.orders[0]
    assert order.command[-1] == str(matrix.folder / "settings/toy_clean_regression_10_s0.yaml")
    assert order.environment["OMP_NUM_THREADS"] == "1" and "--overwrite" not in order.command


def test_a_half_finished_run_goes_on_from_its_checkpoint(study: Path) -> None:
    matrix, runs = prepared(study)
    folder = runs[1].experiment.folder
    finish(runs[1], steps=5)  # measured on its way by `nfc-gs eval`
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.safetensors").write_bytes(b"")
    assert look(runs[1]) is State.HALF
    workers = Pretenders(runs, {})
    swept(matrix, runs, workers)
    assert workers.orders[1].command[-2:] == ["--resume", str(folder)]


def test_a_run_without_a_checkpoint_begins_anew(study: Path) -> None:
    matrix, runs = prepared(study)
    finish(runs[0], steps=5)
    workers = Pretenders(runs, {})
    swept(matrix, runs, workers)
    assert workers.orders[0].command[-1] == "--overwrite"


def test_a_folder_of_other_settings_is_refused_before_anything_starts(study: Path) -> None:
    matrix, runs = prepared(study, "settings=[dataset.size=48]")
    finish(runs[3])
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {})
    with pytest.raises(StudyError, match=r"is a run of other settings \(dataset\.\w+: .* there, .* planned\)"):
        swept(matrix, runs, workers)
    assert not workers.orders


def test_threads_are_no_other_settings(study: Path) -> None:
    matrix, runs = prepared(study)
    finish(runs[0])
    assert look(plan(matrix, study, threads=2)[0]) is State.FINISHED


def test_a_crash_is_tried_again_and_then_reported_and_the_rest_goes_on(study: Path) -> None:
    matrix, runs = prepared(study)
    first, second = runs[0].cell.name, runs[1].cell.name
    workers = Pretenders(runs, {first: [1, 0], second: [-9, -9, 0]})
    outcome, said = swept(matrix, runs, workers)
    assert [order.name for order in workers.orders] == [first, first, second, second, *[r.cell.name for r in runs[2:]]]
    assert len(outcome.finished) == 3 and list(outcome.failed) == [second]
    assert "signal 9 (out of memory?)" in outcome.failed[second]
    assert f"crashed   {first}: exit status 1: nfc-gs: it is broken; trying again" in said


def test_a_users_mistake_is_not_tried_again(study: Path) -> None:
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {runs[0].cell.name: [2, 0]})
    outcome, _ = swept(matrix, runs, workers, retries=5)
    assert outcome.failed == {runs[0].cell.name: "it is broken"} and len(outcome.finished) == 3


def test_when_the_budget_is_spent_nothing_more_starts(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(1000))
    monkeypatch.setattr("nfc_gs.studies.sweep.time.monotonic", lambda: 3600.0 * next(hours))
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {})
    outcome, _ = swept(matrix, runs, workers, budget_hours=1.0)
    assert len(workers.orders) == len(outcome.finished) == 1 and outcome.core_hours >= 1.0
    assert outcome.left == [run.cell.name for run in runs[1:]]


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(study: Path) -> None:
    matrix, runs = prepared(study)
    (matrix.folder.parent).mkdir()
    matrix.folder.write_text("a file where the study's folder should be")
    with pytest.raises(StudyError, match="cannot be written to"):
        swept(matrix, runs, Pretenders(runs, {}))


def test_a_run_without_a_psnr_is_told_in_one_line_and_a_look_without_one_is_left_out(study: Path) -> None:
    matrix, runs = prepared(study)
    for run in runs:
        finish(run)
    writer = SummaryWriter(str(runs[0].experiment.folder / "tensorboard"))
    for step, psnr in ((1, 20.0), (2, float("nan"))):
        writer.add_scalar("held_out/psnr", psnr, step)
        writer.add_scalar("time/train_seconds", float(step), step)
    writer.close()
    assert [look.step for look in read_curve(runs[0].experiment.folder)] == [1]
    metrics = runs[0].experiment.folder / "metrics.json"
    metrics.write_text(metrics.read_text().replace("20.0", "null"))
    with pytest.raises(StudyError, match="has no PSNR"):
        collect(matrix, runs, [runs[0].cell.name])


def test_as_many_run_at_once_as_asked_each_in_a_slot_of_its_own(study: Path) -> None:
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {run.cell.name: [0] for run in runs})
    swept(matrix, runs, workers, jobs=3)
    assert [order.slot for order in workers.orders[:3]] == [0, 1, 2]


def test_ctrl_c_tells_every_run_once_to_save_and_end(study: Path) -> None:
    matrix, runs = prepared(study)
    workers = Pretenders(runs, {run.cell.name: [None] for run in runs})

    class Impatient(Watch):
        def show(self, running, counts, waiting, spent) -> None:
            raise KeyboardInterrupt

    object.__setattr__(matrix, "workers", workers)
    with pytest.raises(KeyboardInterrupt):
        watch = Impatient(Console(file=io.StringIO()), None)
        sweep(matrix, runs, jobs=2, retries=1, budget_hours=None, watch=watch)
    assert [process.stopped for process in workers.processes] == [1, 1]


def test_a_terminal_sees_a_table_of_what_runs_and_what_it_said_last() -> None:
    said = io.StringIO()
    watch = Watch(Console(file=said, force_terminal=True, width=120), budget_hours=2.0)
    watch.begin(5, 1)
    with watch:
        watch.show([("toy_nfc_s0", "step 40/100  [loss] 0.1")], Outcome(finished=["a", "b"]), waiting=2, spent=0.5)
    text = said.getvalue()
    assert "2 of 5 finished, 1 running, 2 waiting, 0 failed; 0.50 of 2 core-hours" in text
    assert "toy_nfc_s0" in text and "step 40/100  [loss] 0.1" in text


def order(tmp_path: Path, code: str, slot: int = 0) -> Order:
    return Order(
        name="it", command=[sys.executable, "-c", code], environment={"MARK": "seven"}, log=tmp_path / "it.log",
        threads=1, slot=slot,
    )  # fmt: skip


def ended(process: Process) -> int:
    until = time.monotonic() + 60
    while (status := process.status()) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return status


def waited_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_child_writes_its_log_and_tells_its_status(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['MARK'], flush=True); sys.exit(3)"
    assert ended(Local().start(order(tmp_path, code))) == 3
    assert (tmp_path / "it.log").read_text() == "seven\n"


@pytest.mark.parametrize(("slot", "device"), [(0, "2"), (1, "5"), (2, "2")])
def test_slots_take_gpus_in_turn(slot: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert ended(Local().start(order(tmp_path, code, slot))) == 0
    assert (tmp_path / "it.log").read_text() == f"{device}\n"
    ended(Local(devices=("7",)).start(order(tmp_path, code, slot)))
    assert (tmp_path / "it.log").read_text() == f"{device}\n7\n"


def test_stopping_a_child_is_ctrl_c(tmp_path: Path) -> None:
    code = (
        "import time\ntry:\n print('ready', flush=True)\n time.sleep(60)\n"
        "except KeyboardInterrupt:\n print('saved', flush=True)"
    )
    child = Local().start(order(tmp_path, code))
    waited_for(lambda: "ready" in (tmp_path / "it.log").read_text())
    child.stop()
    assert ended(child) == 0 and (tmp_path / "it.log").read_text() == "ready\nsaved\n"


def test_slurms_jobs_run_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    code = "import os, sys; print(os.environ['MARK'], flush=True); sys.exit(3)"
    assert ended(Slurm(executor="local").start(order(tmp_path, code))) == 3
    assert (tmp_path / "it.log").read_text() == "seven\n"


def test_without_submitit_or_a_cluster_slurm_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--workers local") as caught:
        Slurm().start(order(tmp_path, ""))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit, which is not installed: pip install 'nfc-gs\[slurm\]'"):
        Slurm().start(order(tmp_path, ""))


def test_results_alone_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["sweep", str(tmp_path / "it.json")]) == 2
    assert "add --tables-only" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["seeds=[0]"], ["--workers", "slurm"], ["--dry-run"]])
def test_results_take_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture, extra: list[str]) -> None:
    assert cli.main(["sweep", str(tmp_path / "it.json"), "--tables-only", *extra]) == 2
    told = capsys.readouterr().err
    assert "no setting changes" in told and len(told.strip().splitlines()) == 1


# ---- for real


def nfc_gs(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_a_study_that_was_interrupted_goes_on_and_ends_in_its_tables(study: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "runs/little"
    long = ["lengths=[100000]", "seeds=[0]"]
    command = [sys.executable, "-m", "nfc_gs.cli", "sweep", str(study), *long, "--threads", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        run = folder / "toy_clean_regression_100000_s0"
        waited_for((run / "checkpoints/last.safetensors").is_file, seconds=300)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(timeout=60) == 130 and child.stderr is not None
        assert b"they save first" in child.stderr.read()
    log = (folder / "logs/toy_clean_regression_100000_s0.log").read_text()
    assert "stopping after this step" in log and "go on with: nfc-gs train --resume" in log

    assert nfc_gs("sweep", study, *long, "--dry-run", "--threads", 1) == 0
    assert "half done toy_clean_regression_100000_s0" in capsys.readouterr().out

    assert nfc_gs("sweep", study, "seeds=[0]", "--threads", 1, "--report", tmp_path / "report") == 0
    page = (tmp_path / "report/little.md").read_text()
    assert "2 of 2 runs" in page and "| toy | nfc | 1 |" in page
    before = page.encode()
    assert nfc_gs("sweep", tmp_path / "report/little.json", "--tables-only") == 0
    assert (tmp_path / "report/little.md").read_bytes() == before
    # A finished study is finished.
    assert nfc_gs("sweep", study, "seeds=[0]", "--threads", 1, "--tables-only") == 0
    assert (folder / "little.md").read_bytes() == before
