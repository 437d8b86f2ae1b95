"""Two processes train one scene as one process does; and what they say when they do not fit together, or one goes."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nfc_gs import __version__, cli
from nfc_gs.config import load
from nfc_gs.core.leaves import written_out
from nfc_gs.training import ranks, run
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.ranks import RankError, Ranks, paired
from nfc_gs.training.trainer import Trainer
from tests.conftest import REPOSITORY
from tests.training.test_runs import read_record

# Sums of one or two views a process are added up in the same order as by one process, so there is nothing to tolerate.
EXACT = {"rtol": 0, "atol": 0}
SMALL = [
    "dataset.size=32", "dataset.num_train=6", "dataset.num_test=1", "dataset.points=300", "steps=24", "threads=1",
    "schedule.sh_every=5", "strategy.cap_max=500", "strategy.every=8", "evaluation.every=12", "evaluation.pictures=1",
    "callbacks.checkpoints.every=10", "rasterizer.kind=cpu",
]  # fmt: skip
TOY = str(REPOSITORY / "configs/toy.yaml")
NFC = str(REPOSITORY / "configs/methods/nfc.yaml")
# TensorBoard takes a second to import.
QUIET = ["callbacks.tensorboard=null", "callbacks.export=null"]
# Does something to the process of rank 1 before its step 13.
AT_STEP_13 = """
import os, signal, sys
from nfc_gs import cli
from nfc_gs.training.trainer import Trainer
step = Trainer.step
def changed(self):
    if self.done == 12 and self.ranks.rank == 1:
        {what}
    return step(self)
Trainer.step = changed
sys.exit(cli.main(sys.argv[1:]))
"""


def settings(folder, *extra) -> list[str]:
    return ["train", TOY, f"output={folder.parent}", f"name={folder.name}", *SMALL, *map(str, extra)]


def launch(*commands: list[str]) -> list[tuple[int, str]]:
    """One process of a training for each command, all at once: their statuses and what they wrote to the error stream."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank, command in enumerate(commands):
        told = {
            "RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": len(commands),
            "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **{name: str(value) for name, value in told.items()}},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
        )
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def our_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("nfc-gs: ")]


def same(one, other) -> None:
    first, second = (load_file(folder / "checkpoints/last.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    assert read_record(one / "checkpoints/last.safetensors")["step"] == 24


def test_torchrun_with_two_processes_does_what_one_process_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(settings(one, "batch=2")) == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "-m", "nfc_gs.cli", *settings(two, "batch=2"),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    same(one, two)
    assert len(load_file(two / "checkpoints/last.safetensors")["gaussians/means"]) == 500  # it began with 300
    assert (one / "exports/one.ply").read_bytes() == (two / "exports/two.ply").read_bytes()
    # Everything is there once: only one process writes, and prints.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert [path.name for path in two.rglob("*.ply")] == ["two.ply"]
    assert len(list((two / "tensorboard").glob("events*"))) == len(list((one / "tensorboard").glob("events*")))
    assert ended.stdout.count("next: ") == 1
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert records[0]["psnr"] == records[1]["psnr"]


def test_one_process_goes_on_where_two_were_told_to_stop(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    wish = [
        NFC,
        *QUIET,
        "batch=4",
        "strategy.kind=mcmc",
        "strategy.every=5",
        "strategy.start=2",
        "strategy.cap_max=500",
    ]
    assert cli.main(settings(one, *wish)) == 0
    # One of them alone hears the signal; both end after the same step, and that step is saved.
    script = AT_STEP_13.format(what="signal.raise_signal(signal.SIGTERM)")
    ended = launch(*[["-c", script, *settings(two, *wish)]] * 2)
    assert [status for status, _ in ended] == [130, 130], ended
    assert read_record(two / "checkpoints/last.safetensors")["step"] == 13
    assert cli.main(["train", "--resume", str(two)]) == 0
    same(one, two)


def test_when_one_process_dies_the_other_says_so_and_ends(tmp_path):
    script = AT_STEP_13.format(what="os._exit(9)")
    ended = launch(*[["-c", script, *settings(tmp_path / "run", *QUIET, "batch=2")]] * 2)
    assert [status for status, _ in ended] == [2, 9]
    (line,) = our_lines(ended[0][1])
    assert "process 0 of 2: another process has ended, and the last checkpoint is kept" in line
    assert "Traceback" not in ended[0][1]
    assert read_record(tmp_path / "run/checkpoints/last.safetensors")["step"] == 10


MEETING = """
import json, sys, time
from pathlib import Path
import torch
from torch import Generator
from nfc_gs.config import UserError, load
from nfc_gs.core.gaussians import Edit
from nfc_gs.datasets.base import DatasetError
from nfc_gs.training import ranks
from nfc_gs.training.experiment import Experiment
here = ranks.join(timeout=8)
said = {}
def refuse():
    if here.rank == 1:
        raise DatasetError("data/fox: no such folder")
sources = ranks._sources
for name, act in {
    "data": lambda: here.together(refuse),
    "settings": lambda: here.divide(load(Experiment, [Path(sys.argv[1])], ["batch=2", f"seed={here.rank}"])),
    "commits": lambda: here.divide(load(Experiment, [Path(sys.argv[1])], ["batch=2"])),
    "program": lambda: here.agree({"torch": "2.0" if here.first else "3.0"}),
}.items():
    # As if the files of one were of another commit.
    ranks._sources = (lambda experiment: f"of {here.rank}") if name == "commits" else sources
    try:
        act()
    except UserError as mistake:
        said[name] = str(mistake)
torch.manual_seed(here.rank)
likes = [torch.zeros(3, 5), torch.zeros(4), torch.zeros(2), torch.zeros(0, 3)]
mine = [torch.rand(3, 5), torch.rand(4) if here.first else None, None, torch.zeros(0, 3)]
added = here.add_up(mine, likes, [True, True, False, True])
said["sum"] = [None if value is None else value.tolist() for value in added]
own = Edit(
    parent=torch.arange(3 + here.rank), fresh=torch.arange(3 + here.rank) == here.rank,
    values={"means": torch.full((3 + here.rank, 3), float(here.rank))}, forget=("quats",) * here.rank,
)
generator = Generator().manual_seed(here.rank)
edit = here.same_edit(own, generator)
said["edit"] = [edit.parent.tolist(), edit.fresh.tolist(), edit.values["means"].tolist(), edit.forget]
said["drawn"] = torch.rand(2, generator=generator).tolist()
try:
    if here.rank == 1:
        time.sleep(11)
    here.gather(None)
except UserError as mistake:
    said["silence"] = str(mistake)
print(json.dumps(said), file=sys.stderr)
"""


def test_processes_agree_add_up_and_do_not_wait_for_ever():
    ended = launch(*[["-c", MEETING, TOY]] * 2)
    # torch may have something to say after us.
    zero, one = (json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for _, text in ended)
    assert zero["data"] == "process 1 of 2 stopped: data/fox: no such folder"
    assert (
        zero["settings"]
        == one["settings"]
        == "seed: process 0 has 0, process 1 of 2 has 1; all processes need the same"
    )
    assert one["data"] == "data/fox: no such folder"
    differ = f"nfc-gs: process 0 has {__version__} (sources of 0), process 1 of 2 has {__version__} (sources of 1)"
    assert zero["commits"] == one["commits"] == f"{differ}; all processes need the same"
    assert (
        zero["program"]
        == one["program"]
        == "torch: process 0 has 2.0, process 1 of 2 has 3.0; all processes need the same"
    )

    parts = []
    for rank in range(2):
        torch.manual_seed(rank)
        parts.append([torch.rand(3, 5), torch.rand(4)])
    expected = [parts[0][0] + parts[1][0], parts[0][1]]
    for mine in (zero, one):
        assert [torch.tensor(value).equal(by_hand) for value, by_hand in zip(mine["sum"], expected, strict=False)] == [
            True
        ] * 2
        # Of which nobody has a gradient, there is none, rather than zeros that Adam would count as a step.
        assert mine["sum"][2] is None
        # The change of the population is rank 0's, and so is what is drawn next.
        assert mine["edit"] == [[0, 1, 2], [True, False, False], [[0.0] * 3] * 3, []]
        assert mine["drawn"] == torch.rand(2, generator=torch.Generator().manual_seed(0)).tolist()
    assert "process 0 of 2: another process was silent for 8 s (--timeout)" in zero["silence"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # As NCCL says it, by torch 2.x.
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=61, OpType=ALLTOALL, NumelIn=2, NumelOut=2, "
            "Timeout(ms)=9000) ran for 9012 milliseconds before timing out.\nException raised from checkTimeout",
            "another process was silent for 9 s (--timeout)",
        ),
        (
            "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error, NCCL version 2.26.2\n"
            "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
            "another process has ended",
        ),
    ],
)
def test_what_nccl_says_of_others_becomes_one_line(said, expected):
    with pytest.raises(RankError) as refusal, Ranks(rank=0, count=2, timeout=9.0)._listening():
        raise torch.distributed.DistBackendError(said)
    assert str(refusal.value).startswith(f"process 0 of 2: {expected}") and "\n" not in str(refusal.value)
    assert "the last checkpoint is kept" in str(refusal.value)


def test_another_commit_has_other_sources(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("1")
    here = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(ranks.importlib.util, "find_spec", lambda name: here)
    experiment = load(Experiment, [REPOSITORY / "configs/toy.yaml"])
    first = ranks._facts(experiment)["nfc-gs"]
    assert ranks._facts(experiment)["nfc-gs"] == first
    (tmp_path / "a.py").write_text("2")
    assert ranks._facts(experiment)["nfc-gs"] != first


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch=2"], "batch=2: 1 of 3 processes would have no view to look at; set batch=3, or start 2"),
        (["batch=4"], "batch=4: 3 processes cannot look at equally many views; set batch=3 or batch=6"),
        (
            ["batch=3", "code.kind=binary", "losses.label_bce.weight=0.3"],
            "losses.label_bce: learns from one view after",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(overrides, expected):
    with pytest.raises(RankError) as refusal:
        Ranks(rank=0, count=3).divide(load(Experiment, [REPOSITORY / "configs/toy.yaml"], overrides))
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_processes_that_torchrun_did_not_start_are_told_how(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(settings(tmp_path / "run")) == 2
    assert "start with `torchrun --nproc_per_node=N -m nfc_gs.cli train ...`" in capsys.readouterr().err


def test_the_sums_of_processes_are_parts_of_the_sum_of_one():
    values = torch.rand(8, 1000, generator=torch.Generator().manual_seed(0))
    (whole,) = paired(range(8), lambda view: [values[view]])
    for count in (2, 4):
        shares = [paired(range(rank, 8, count), lambda view: [values[view]])[0] for rank in range(count)]
        (together,) = paired(range(count), lambda rank, shares=shares: [shares[rank]])
        torch.testing.assert_close(together, whole, **EXACT)
    # Each of three additions on the way to a sum below 8 rounds by at most half a unit of the last place.
    torch.testing.assert_close(whole, values.double().sum(0).float(), rtol=0, atol=3 * 8 * 2**-24)


def whole_gradient(leaf):
    """What is written out and what was told, as batches of one have it told."""
    parts = [leaf.grad, None if leaf.heard is None else written_out(leaf.heard, leaf)]
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(0) if there else None


@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_steps_by_the_mean_of_its_views_gradients(sparse, monkeypatch):
    overrides = [*SMALL, "batch=3", "losses.opacity.weight=0.1", f"optimizer.sparse={sparse}"]
    found = {}

    def noted(self, step, radii):
        gradients = {name: whole_gradient(value) for name, value in self.gaussians.items()}
        found["gradients"] = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        found["drawn"] = (radii > 0).all(1)

    monkeypatch.setattr("nfc_gs.training.optimizer.GaussianOptimizer.step", noted)
    trainer = run.build(load(Experiment, [REPOSITORY / "configs/toy.yaml"], overrides))
    report = trainer.step()

    singles, drawn, terms, pulled = [], [], [], []
    for look in range(3):
        # The same views one by one, by the path of batches of one, that other tests prove.
        alone = run.build(load(Experiment, [REPOSITORY / "configs/toy.yaml"], [*overrides, "batch=1"]))
        monkeypatch.setattr(alone, "view_number", lambda _, look=look: trainer.view_number(look))
        terms.append(alone.step().terms)
        singles.append(found["gradients"])
        drawn.append(found["drawn"])
        pulled.append(alone.statistics)
        alone.photographs.close()
    # Once more, for what the optimizer was given.
    monkeypatch.setattr(Trainer, "_change_population", lambda *_: None)
    again = run.build(load(Experiment, [REPOSITORY / "configs/toy.yaml"], overrides))
    again.step()
    for name, gradient in found["gradients"].items():
        mean = torch.stack([one[name] for one in singles]).double().mean(0).float()
        # Two roundings of sums, relative to their largest summand.
        largest = max(float(one[name].abs().max()) for one in singles) + 1e-30
        torch.testing.assert_close(gradient, mean, rtol=0, atol=3e-7 * largest)
    assert found["drawn"].equal(torch.stack(drawn).any(0))
    for name, value in report.terms.items():
        assert float(value) == pytest.approx(sum(float(each[name]) for each in terms) / 3, rel=1e-6)
    for name in ("gradients", "pulled"):
        seen = sum(each[name] for each in pulled)
        torch.testing.assert_close(trainer.statistics[name], seen, rtol=1e-6, atol=0)
    again.photographs.close()
    trainer.photographs.close()
