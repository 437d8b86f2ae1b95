"""The kit that checks the CUDA path: tried on the CPU, and its flow on a GPU with the worker replaced."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from nfc_gs.benchmarks.loads import STEPS, make_trainer, shells
from nfc_gs.benchmarks.minimal import MinimalLoop, Shot, paired, params_of_load
from nfc_gs.rasterizers.cpu import Cpu
from tests.conftest import REPOSITORY
from tests.tools.conftest import _load

SAME_LOSS = 1e-5  # sums of float32 over some thousand pixels
GPU = {
    "python": "3.12.3", "torch": "2.11.0+cu130", "torch_cuda": "13.0", "cuda": True, "driver": "580.1", "gpu": "NVIDIA Some",
    "gpu_gb": 140.0, "architecture": "9.0", "cores": 16, "system": "Linux x86_64", "missing": [], "missing_optional": {},
    "missing_unused": [],
}  # fmt: skip
BUILT = {"ok": True, "reason": "gsplat: drew one splat", "seconds": 300.0, "jobs": 16}
SMALL = ["--splats", "100,200", "--sizes", "40x30", "--kinds", "regression", "--methods", "nfc", "--steps", "20"]


@pytest.fixture(scope="module")
def gpu_check():
    return _load("gpu_check")


@pytest.fixture(scope="module")
def gpu_parts():
    return _load("gpu_parts")


def bench(words):
    of, against = words[1], "minimal"
    spread = {"median": 2.0, "low": 1.5, "high": 2.5}
    return {
        "ok": True, "kind": of, "splats": int(words[2]), "size": words[3], "of": of, "against": against, "ratio": spread,
        "milliseconds": {of: spread, against: spread}, "peak_mb": {of: 100.0, against: None},
    }  # fmt: skip


@pytest.fixture
def on_a_gpu(gpu_check, monkeypatch, tmp_path, capsys):
    """Calls the kit as if on a GPU: `answers` maps a part to how it ends, what is not named is done; and what was begun."""
    folder = tmp_path / "check"

    class Calls:
        def __init__(self):
            self.answers, self.machine, self.begun = {}, GPU, []

        def __call__(self, *arguments):
            self.begun.clear()
            monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(folder), *SMALL, *arguments])
            with pytest.raises(SystemExit) as ended:
                gpu_check.main()
            self.said = capsys.readouterr()
            return ended.value.code

        @property
        def record(self):
            return json.loads((folder / "gpu_check.json").read_text())

        @property
        def table(self):
            return (folder / "gpu_check.md").read_text()

    calls = Calls()

    def run(machine, words, limit, settings=()):
        if words[0] == "probe":
            return "done", calls.machine, ""
        calls.begun.append(" ".join(words[:3]))
        found = {"build": BUILT, "bench": bench(words) if words[0] == "bench" else None}.get(words[0], {"ok": True})
        if words[0] == "build":
            kernels = machine.folder / "kernels/gsplat_cuda"
            kernels.mkdir(parents=True, exist_ok=True)
            (kernels / "gsplat_cuda.so").touch()
        ended = calls.answers.get(words[0], "done")
        return (ended, found, "") if ended == "done" else (ended, None, "said last")

    monkeypatch.setattr(gpu_check.Machine, "run", run)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    return calls


def arguments(folder, *more):
    return [sys.executable, str(REPOSITORY / "tools/gpu_check.py"), "--device", "cpu", "--output", str(folder), *more]


def test_a_dry_run_on_the_cpu_goes_on_where_it_was_broken_off_and_says_what_it_is(tmp_path):
    scene = tmp_path / "small.yaml"
    scene.write_text(
        f"base: {REPOSITORY / 'configs/toy.yaml'}\ndataset: {{size: 32, points: 300}}\nstrategy: {{cap_max: 400}}\n"
    )
    folder = tmp_path / "check"
    wanted = ["--parts", "compare,bench,train,table", "--splats", "200", "--sizes", "40x30", "--kinds", "regression"]
    wanted += ["--methods", "regression", "--steps", "20", "--scene", str(scene), "--repeats", "2", "--block", "1"]
    with subprocess.Popen(arguments(folder, *wanted), stdout=subprocess.PIPE, text=True) as broken:
        assert broken.stdout.readline().startswith("compare: done")
        broken.terminate()
    assert broken.returncode == 130
    first = json.loads((folder / "gpu_check.json").read_text())
    assert list(first["pieces"]) == ["compare"]

    again = subprocess.run(arguments(folder, *wanted), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "compare: done before" in again.stdout
    record = json.loads((folder / "gpu_check.json").read_text())
    assert record["pieces"]["compare"] == first["pieces"]["compare"]
    assert list(record["pieces"]) == ["compare", "bench regression 200 40x30", "train regression small 20"]
    trained = record["pieces"]["train regression small 20"]["result"]
    assert trained["steps"] == 20 and trained["psnr"] > 5
    measured = record["pieces"]["bench regression 200 40x30"]["result"]
    assert measured["ratio"]["median"] > 0 and set(measured["milliseconds"]) == {"regression", "minimal"}
    table = (folder / "gpu_check.md").read_text()
    assert record["what"].startswith("DRY RUN ON A CPU") and "DRY RUN ON A CPU" in table.splitlines()[0]
    assert "| cpu | reference | 400 |" in table and "| regression | minimal | 200 | 40x30 |" in table

    on_gpu = [word for word in arguments(folder) if word not in ("--device", "cpu")]
    if not torch.cuda.is_available():
        refused = subprocess.run(on_gpu, capture_output=True, text=True)
        assert refused.returncode == 2 and "is of --device cpu" in refused.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
def test_without_a_device_one_line_says_what_was_found(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/gpu_check.py"), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    assert f"torch {torch.__version__}" in line and "driver" in line


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"format": 1}', '{"format": 9, "pieces": {}}', '{"format": 1, "pieces": {"build": 3}}']
)
def test_a_corrupt_record_is_refused_in_one_line(on_a_gpu, tmp_path, text):
    (tmp_path / "check").mkdir()
    (tmp_path / "check/gpu_check.json").write_text(text)
    assert on_a_gpu() == 2
    (line,) = on_a_gpu.said.err.strip().splitlines()
    assert "gpu_check.json: is no record of this tool" in line
    assert (tmp_path / "check/gpu_check.json").read_text() == text


def test_all_pieces_are_done_once_and_again_when_asked_for(on_a_gpu):
    assert on_a_gpu("--parts", "build,bench,train") == 0
    everything = [
        "build",
        "bench regression 100",
        "bench regression 200",
        f"train nfc {REPOSITORY / 'configs/toy.yaml'}",
    ]
    assert on_a_gpu.begun == everything
    assert on_a_gpu("--parts", "build,bench,train") == 0
    assert on_a_gpu.begun == []
    assert on_a_gpu("--parts", "build,bench,table", "--again", "bench") == 0
    assert on_a_gpu.begun == everything[1:3]
    assert "| regression | minimal | 200 | 40x30 | 2.00 | 2.00 | 2.00 (1.50-2.50) | 100 | - |" in on_a_gpu.table
    assert on_a_gpu.table.startswith("# GPU check: on a GPU\n\nNVIDIA Some (140 GB, driver 580.1); torch 2.11.0+cu130")


def test_a_broken_off_build_goes_on_in_the_next_call_and_nothing_is_begun_before_it_is_done(on_a_gpu):
    on_a_gpu.answers = {"build": "limit"}
    assert on_a_gpu("--parts", "build,bench,table") == 3
    assert on_a_gpu.begun == ["build"] and on_a_gpu.record["pieces"]["build"]["status"] == "unfinished"
    assert "Not begun: bench regression 100 40x30, bench regression 200 40x30." in on_a_gpu.table
    on_a_gpu.answers = {}
    assert on_a_gpu("--parts", "build,bench") == 0
    assert len(on_a_gpu.begun) == 3


def test_kernels_that_are_not_there_are_built_again(on_a_gpu, tmp_path):
    assert on_a_gpu("--parts", "build") == 0
    (tmp_path / "check/work/kernels/gsplat_cuda/gsplat_cuda.so").unlink()
    assert on_a_gpu("--parts", "build") == 0
    assert on_a_gpu.begun == ["build"]


def test_after_a_failed_build_nothing_is_begun_and_its_last_words_are_kept(on_a_gpu):
    on_a_gpu.answers = {"build": "failed"}
    assert on_a_gpu("--parts", "build,compare,table") == 1
    assert on_a_gpu.begun == ["build"] and "said last" in on_a_gpu.table
    assert on_a_gpu("--parts", "build,compare") == 1
    assert on_a_gpu.begun == []


def test_a_failed_piece_stops_no_other(on_a_gpu):
    on_a_gpu.answers = {"bench": "failed"}
    assert on_a_gpu("--parts", "bench,train") == 1
    assert len(on_a_gpu.begun) == 3


def test_a_piece_that_never_fits_has_failed_and_is_not_begun_for_ever(on_a_gpu):
    on_a_gpu.answers = {"bench": "limit"}
    assert on_a_gpu("--parts", "bench") == 3
    assert [piece["status"] for piece in on_a_gpu.record["pieces"].values()] == ["failed", "unfinished"]
    assert on_a_gpu("--parts", "bench") == 1


def test_nothing_is_begun_that_does_not_fit(on_a_gpu):
    assert on_a_gpu("--parts", "bench", "--limit", "30") == 3
    assert on_a_gpu.begun == ["bench regression 100"]


def test_nfc_is_averaged_over_a_training_where_both_its_steps_were_timed(on_a_gpu, monkeypatch):
    ratios = {"nfc": 1.2, "nfc_off": 1.05}
    plain = globals()["bench"]

    def measured(words):
        found = plain(words)
        return found | {"ratio": {**found["ratio"], "median": ratios[words[1]]}, "acts": 0.6}

    monkeypatch.setitem(globals(), "bench", measured)
    assert on_a_gpu("--parts", "bench,table", "--kinds", "nfc,nfc_off", "--splats", "100") == 0
    # 0.6 x 1.2 + 0.4 x 1.05
    assert "nfc averaged over a training, 60% of it with its loss: 1.14 (100 splats, 40x30)" in on_a_gpu.table


def test_fused_ssim_is_timed_only_where_it_is_installed_and_once_a_size(on_a_gpu):
    on_a_gpu.machine = GPU | {"missing_optional": {"bench ssim": ["fused-ssim"]}}
    assert on_a_gpu("--parts", "bench", "--kinds", "regression,ssim") == 0
    assert on_a_gpu.begun == ["bench regression 100", "bench regression 200"]
    assert on_a_gpu.record["pieces"]["bench ssim 100 40x30"]["tail"] == "missing: fused-ssim"


def test_each_piece_keeps_the_commit_that_it_was_made_at(on_a_gpu):
    assert on_a_gpu("--parts", "build", "--commit", "one") == 0
    assert on_a_gpu("--parts", "build,bench,table", "--splats", "100", "--commit", "two") == 0
    assert [piece["commit"] for piece in on_a_gpu.record["pieces"].values()] == ["one", "two"]
    assert "commit two" in on_a_gpu.table and "At commit one: build." in on_a_gpu.table


def test_a_copy_without_git_is_known_by_its_sources(gpu_check, monkeypatch, tmp_path):
    copy = tmp_path / "copy"
    (copy / "nfc_gs").mkdir(parents=True)
    (copy / "nfc_gs/a.py").write_text("1")
    monkeypatch.setattr(gpu_check, "REPOSITORY", copy)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    first = gpu_check._commit()
    assert re.fullmatch(r"unknown, sources [0-9a-f]{12}", first)
    (copy / "nfc_gs/a.py").write_text("2")
    assert gpu_check._commit() != first

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    # Within another repository, whose commit it is not.
    folder = tmp_path
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "other")
    monkeypatch.delenv("GIT_CEILING_DIRECTORIES")
    assert gpu_check._commit().startswith("unknown, sources ")
    folder = copy
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "own")
    head = git("rev-parse", "HEAD")
    assert gpu_check._commit() == head
    (copy / "nfc_gs/a.py").write_text("3")
    assert gpu_check._commit().startswith(f"{head} with changes, sources ")


def test_a_part_whose_packages_are_missing_is_skipped(on_a_gpu):
    on_a_gpu.machine = GPU | {"missing_optional": {"tests": ["hypothesis"]}}
    assert on_a_gpu("--parts", "tests,compare") in (0, 1)
    assert on_a_gpu.record["pieces"]["tests"] == {"status": "skipped", "tail": "missing: hypothesis"}


def test_missing_packages_are_named_in_one_line(on_a_gpu):
    on_a_gpu.machine = GPU | {"missing": ["gsplat", "plyfile"]}
    assert on_a_gpu() == 2
    assert "packages are missing: gsplat, plyfile; bring their wheels" in on_a_gpu.said.err


def test_another_gpus_results_are_not_mixed_in(on_a_gpu):
    assert on_a_gpu("--parts", "build") == 0
    on_a_gpu.machine = GPU | {"gpu": "NVIDIA Other"}
    assert on_a_gpu("--parts", "build") == 2
    assert "is of NVIDIA Some, and this is NVIDIA Other" in on_a_gpu.said.err


def test_carried_wheels_are_found_and_what_is_stood_in_for_can_be_imported(gpu_check, tmp_path):
    wheel = tmp_path / "wheels/some_thing-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("some_thing.py", "ANSWER = 42\n")
        file.writestr("some_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.0\n")
        file.writestr(
            "some_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("some_thing-1.0.dist-info/RECORD", "some_thing.py,,\n")
    machine = gpu_check.Machine(tmp_path / "work", "cpu")
    machine.install(["some-thing", "not-carried"], wheel.parent)
    machine.stand_in(["av"])
    code = (
        "import some_thing; print(some_thing.ANSWER)\n"
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from av.video.frame import VideoFrame\n"
        "try: VideoFrame()\nexcept ImportError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(machine.stand_ins)], env=machine.environment(), capture_output=True, text=True
    )
    assert said.stdout == "42\nav.video.frame is not installed on this machine\n", said.stderr
    assert os.environ.get("PYTHONPATH", "") in machine.environment()["PYTHONPATH"]

    broken = tmp_path / "broken/some_thing-1.0-py3-none-any.whl"
    broken.parent.mkdir()
    broken.write_text("no zip")
    with pytest.raises(gpu_check.CheckError, match="pip could not install some-thing") as refused:
        machine.install(["some-thing"], broken.parent)
    assert len(str(refused.value).splitlines()) == 1


# ---- the minimal loop


def test_the_minimal_loop_sees_the_loss_that_our_trainer_sees(gpu_parts):
    load = shells(300, 0).seen(50, 34)
    trainer = make_trainer(load, "regression", Cpu(), 0)
    photograph = trainer.scene.train[0].read().rgb
    shots = [Shot(load.camera, torch.from_numpy(photograph))]
    start, draw = params_of_load(load), gpu_parts.rasterization_on_cpu
    loop = MinimalLoop(start, shots, draw, gpu_parts.IdleStrategy(), "cpu", STEPS)
    ours = sum(float(term) for term in trainer.step().terms.values())
    losses = [float(loop.step()) for _ in range(30)]
    assert losses[0] == pytest.approx(ours, rel=SAME_LOSS)
    assert losses[-1] < losses[0]
    assert loop.optimizers["means"].param_groups[0]["lr"] == pytest.approx(1.6e-4 * 0.01 ** (30 / STEPS))
    trainer.photographs.close()
    trainer.held_out.close()


class Halving:
    """In the place of gsplat's strategy: remembers in tensors, and drops every other splat after the third step, as it does."""

    def __init__(self, interrupted_at=None):
        self.interrupted_at = interrupted_at

    def check_sanity(self, params, optimizers):
        pass

    def initialize_state(self, scene_scale):
        return {"count": None, "scene_scale": scene_scale}

    def step_pre_backward(self, params, optimizers, state, step, info):
        pass

    def step_post_backward(self, params, optimizers, state, step, info, packed):
        counted = (params["means"].detach() != 0).float().sum(1)
        state["count"] = counted if state["count"] is None else state["count"] + counted
        if step == self.interrupted_at:
            signal.raise_signal(signal.SIGTERM)
        if step != 2:
            return
        for name, optimizer in optimizers.items():
            old = params[name]
            new = torch.nn.Parameter(old.detach()[::2])
            state_of = optimizer.state.pop(old)
            for key in ("exp_avg", "exp_avg_sq"):
                state_of[key] = state_of[key][::2]
            optimizer.state[new], optimizer.param_groups[0]["params"] = state_of, [new]
            params[name] = new
        state["count"] = state["count"][::2]


@pytest.mark.parametrize("interrupted_at", [1, 4])
def test_a_minimal_loop_that_was_told_to_end_goes_on_as_if_it_had_not_been(gpu_parts, tmp_path, interrupted_at):
    load, steps, kept = shells(60, 0).seen(24, 16), 8, tmp_path / "kept.pt"
    photographs = torch.randint(256, (3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def loop(strategy):
        shots = [Shot(load.camera, photograph) for photograph in photographs]
        return MinimalLoop(params_of_load(load), shots, gpu_parts.rasterization_on_cpu, strategy, "cpu", steps)

    now = iter(range(100)).__next__
    before = signal.getsignal(signal.SIGTERM)
    try:
        whole = loop(Halving())
        assert gpu_parts._to_the_end(whole, steps, tmp_path / "whole.pt", now) == 1
        with pytest.raises(SystemExit) as ended:
            gpu_parts._to_the_end(loop(Halving(interrupted_at)), steps, kept, now)
        assert ended.value.code == 130
        resumed = loop(Halving())
        # Both calls' seconds, by a clock that goes on by one at each look.
        assert gpu_parts._to_the_end(resumed, steps, kept, now) == 2
        # And once more, when all is done.
        assert gpu_parts._to_the_end(loop(Halving()), steps, kept, now) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(resumed.params["means"]) == 30 and resumed.done == steps
    for name, value in whole.params.items():
        assert torch.equal(resumed.params[name], value), name
    assert torch.equal(resumed.state["count"], whole.state["count"])


def test_paired_works_take_turns_and_are_timed_by_the_clock():
    now, calls = [0.0], []

    def work(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    passed = paired({"a": work("a", 0.25), "b": work("b", 0.5)}, 2, 3, lambda: now[0])
    assert "".join(calls) == "aaabbb" + "bbbaaa"
    assert passed == {"a": [250.0, 250.0], "b": [500.0, 500.0]}
