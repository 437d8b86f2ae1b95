"""Trainings of the toy scene, short, as a user starts them: through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nfc_gs import cli
from tests.conftest import REPOSITORY

EXACT = {"rtol": 0, "atol": 0}  # a resumed run does the same operations on the same numbers
SMALL = [
    "dataset.size=40", "dataset.num_train=8", "dataset.num_test=2", "dataset.points=300", "steps=60",
    "schedule.sh_every=15", "strategy.cap_max=600", "strategy.every=10", "evaluation.every=30",
    "callbacks.checkpoints.every=20", "callbacks.tensorboard.every=5", "callbacks.tensorboard.histograms=20",
]  # fmt: skip
METHODS = {
    "regression": [],
    "nfc": [str(REPOSITORY / "configs/methods/nfc.yaml")],
    "labels": ["code.kind=binary", "losses.label_bce.weight=0.3", "optimizer.colour_logits=0.02"],
}


def nfc_gs(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def train(folder, *extra) -> int:
    files = [text for text in extra if str(text).endswith(".yaml")]
    rest = [text for text in extra if text not in files]
    toy = REPOSITORY / "configs/toy.yaml"
    return nfc_gs("train", toy, *files, f"output={folder.parent}", f"name={folder.name}", *SMALL, *rest)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert train(folder) == 0
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_short_training_improves_on_its_beginning(method, tmp_path):
    assert train(tmp_path / "toy", *METHODS[method], "steps=240") == 0
    after = json.loads((tmp_path / "toy/metrics.json").read_text())
    assert train(tmp_path / "first", *METHODS[method], "steps=1") == 0
    before = json.loads((tmp_path / "first/metrics.json").read_text())
    # These steps are worth five dB or more; three keeps the test from being about luck.
    assert after["psnr"] > before["psnr"] + 3


def test_a_run_folder_holds_what_it_promises(trained):
    for name in (
        "config.yaml", "metrics.json", "contact_sheet.png",
        "checkpoints/last.safetensors", "checkpoints/best.safetensors", "exports/toy.ply",
    ):  # fmt: skip
        assert (trained / name).is_file(), name
    record = json.loads((trained / "metrics.json").read_text())
    wanted = {
        "psnr", "ssim", "lpips_alex", "lpips_squeeze", "lpips_reason", "num_gaussians", "num_test_views", "steps",
        "train_seconds", "seconds_per_frame", "bytes", "split", "resolution", "background", "device", "versions",
        "commit", "peak_megabytes",
    }  # fmt: skip
    assert wanted <= set(record)
    assert (record["steps"], record["num_test_views"], record["split"]) == (60, 2, "test")
    assert not list(trained.rglob("*.partial"))


def test_tensorboard_has_every_promised_curve(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for name in (
        "loss/l1", "loss/dssim", "loss/total", "train/psnr", "learning_rate/means", "speed/steps_per_second",
        "milliseconds/render", "milliseconds/backward", "model/gaussians", "memory/process_megabytes",
        "held_out/psnr", "held_out/ssim", "bit_accuracy/0",
    ):  # fmt: skip
        assert name in scalars, name
    assert events.Scalars("loss/l1")[0].step == 1
    assert "gaussians/opacities" in events.Tags()["histograms"]
    assert any(name.startswith("held_out/") for name in events.Tags()["images"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", ["growth", "mcmc"])
def test_a_resumed_run_equals_an_uninterrupted_one(method, strategy, tmp_path, monkeypatch):
    from nfc_gs.training.trainer import Trainer

    settings = [*METHODS[method], f"strategy.kind={strategy}", "strategy.cap_max=600"]
    if strategy == "mcmc":
        settings += ["strategy.every=10", "strategy.start=5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, *settings) == 0

    step = Trainer.step

    def interrupted(self):
        if self.done == 33:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert train(broken, *settings) == 130
    monkeypatch.setattr(Trainer, "step", step)
    # The step that Ctrl-C came into was brought to its end.
    assert read_record(broken / "checkpoints/last.safetensors")["step"] == 34
    assert nfc_gs("train", "--resume", broken) == 0
    one, other = (load_file(folder / "checkpoints/last.safetensors") for folder in (whole, broken))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **EXACT)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_was_interrupted_while_it_was_evaluated_equals_an_uninterrupted_one(times, tmp_path, monkeypatch):
    from nfc_gs.training.trainer import Trainer

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole) == 0

    evaluate = Trainer.evaluate

    def interrupted(self):
        # Once lets the evaluation end; twice breaks it off.
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", interrupted)
    assert train(broken) == 130
    assert read_record(broken / "checkpoints/last.safetensors")["step"] == (30 if times == 1 else 20)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert nfc_gs("train", "--resume", broken) == 0
    for name in ("last", "best"):
        path = f"checkpoints/{name}.safetensors"
        one, other = read_record(whole / path), read_record(broken / path)
        assert (one["step"], one["best_psnr"]) == (other["step"], other["best_psnr"])
        for field, value in load_file(whole / path).items():
            torch.testing.assert_close(value, load_file(broken / path)[field], **EXACT)


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    folder = tmp_path / "killed"
    command = [
        sys.executable, "-m", "nfc_gs.cli", "train", str(REPOSITORY / "configs/toy.yaml"),
        f"output={tmp_path}", "name=killed", *SMALL, "steps=100000", "callbacks.checkpoints.every=5",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    last = folder / "checkpoints/last.safetensors"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads(json.dumps(read_record(last)))["step"]
    assert before % 5 == 0 and before > 0
    # A checkpoint belongs to its settings: other settings beside it are refused.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "steps": before + 3}))
    assert nfc_gs("train", "--resume", folder) == 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    from nfc_gs.training import run

    trainer = run.resume(folder)
    assert trainer.done == before
    trainer.step()


def test_a_step_that_breaks_off_is_not_saved(tmp_path, monkeypatch, capsys):
    from nfc_gs.training.optimizer import GaussianOptimizer

    whole = GaussianOptimizer.step

    def halved(self, step, radii):
        if step == 33:
            # The second signal is obeyed at once, with the step half done.
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        whole(self, step, radii)

    monkeypatch.setattr(GaussianOptimizer, "step", halved)
    assert train(tmp_path / "toy") == 130
    assert read_record(tmp_path / "toy/checkpoints/last.safetensors")["step"] == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_of_every_second_step_weighs_twice_there_and_is_not_drawn_for_elsewhere():
    from nfc_gs.benchmarks.loads import make_trainer, shells
    from nfc_gs.rasterizers.cpu import Cpu

    def terms(every):
        # So small a weight that both trainings take the same steps.
        losses = {"code_bce": {"weight": 1e-12, "turns": False, "every": every}}
        trainer = make_trainer(shells(64, 0).seen(20, 20), "regression", Cpu(), 0, {"losses": losses})
        try:
            reports = [trainer.step() for _ in range(4)]
        finally:
            trainer.photographs.close()
        return {r.step: (r.terms.get("code_bce"), list(r.picture.planes)) for r in reports}

    always, second = terms(1), terms(2)
    assert [planes for _, planes in always.values()] == [["code_bce"]] * 4
    for step, (term, planes) in second.items():
        assert planes == ([] if step % 2 else ["code_bce"])
        # Adam makes steps of gradients that differ in their last bits.
        assert (term is None) if step % 2 else (float(term) == pytest.approx(2 * float(always[step][0]), rel=1e-4))


def test_a_training_that_diverges_keeps_its_last_checkpoint(tmp_path, monkeypatch, capsys):
    from nfc_gs.training.optimizer import GaussianOptimizer

    whole = GaussianOptimizer.step

    def diverging(self, step, radii):
        whole(self, step, radii)
        if step == 33:
            self.gaussians.colour_logits.data[:] = float("nan")

    monkeypatch.setattr(GaussianOptimizer, "step", diverging)
    assert train(tmp_path / "toy") == 2
    assert "no longer a number at step 35" in capsys.readouterr().err
    last = tmp_path / "toy/checkpoints/last.safetensors"
    assert read_record(last)["step"] == 20
    assert all(value.isfinite().all() for value in load_file(last).values())


@pytest.mark.parametrize("files", [["toy.yaml"], ["toy.yaml", "methods/nfc.yaml"], ["dynamic/toy.yaml"]])
def test_a_training_has_the_same_bits_on_any_number_of_threads(files):
    from nfc_gs.config import load
    from nfc_gs.kernels.threads import thread_count
    from nfc_gs.training import run
    from nfc_gs.training.experiment import Experiment

    before, results = thread_count(), []
    for threads in (1, 3):
        settings = ["steps=60", "strategy.every=20", "callbacks={}", f"threads={threads}", "dataset.size=96"]
        if "dynamic" in files[0]:
            settings.append("deformation.warm_up=0.1")
        trainer = run.build(load(Experiment, [REPOSITORY / "configs" / name for name in files], settings))
        while trainer.done < 60:
            trainer.step()
        results.append([*trainer.model.gaussians.items(), *trainer.model.field.state_dict().items()])
    run.use_threads(before)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(*results, strict=True))


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.75 GiB\n and more lines"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_training_out_of_memory_saves_and_goes_on_as_if_nothing_had_happened(batch, tmp_path, monkeypatch, capsys):
    from nfc_gs.model import SplatModel

    calls = 33 * batch
    render = SplatModel.render_views

    def full(self, *arguments, **named):
        nonlocal calls
        # Not the looks at the held-out views, which are no steps.
        calls -= named["step"] > 0
        pictures = render(self, *arguments, **named)
        if calls == 0 and named["step"] > 0:
            # Half way into the backward pass, too, some gradients would be there.
            self.gaussians.means.grad = torch.ones_like(self.gaussians.means)
            raise torch.OutOfMemoryError(FULL)
        return pictures

    assert train(tmp_path / "whole", f"batch={batch}") == 0
    monkeypatch.setattr(SplatModel, "render_views", full)
    capsys.readouterr()
    assert train(tmp_path / "toy", f"batch={batch}") == 2
    said = capsys.readouterr().err.strip()
    last = tmp_path / "toy/checkpoints/last.safetensors"
    assert re.search(
        r"cpu: out of memory in step 33 with \d+ Gaussians and pictures of up to (\d+)x\1 \(CUDA out of memory\)", said
    )
    assert str(last) in said and re.search(r"strategy\.cap_max=\d+, ", said) and "\n" not in said.split("nfc-gs: ")[-1]
    assert ("or with a smaller batch" in said) == (batch > 1)
    assert read_record(last)["step"] == 32
    assert nfc_gs("train", "--resume", tmp_path / "toy") == 0
    one, other = (load_file(tmp_path / name / "checkpoints/last.safetensors") for name in ("whole", "toy"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_memory_that_ends_in_the_middle_of_an_update_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    from nfc_gs.training.optimizer import GaussianOptimizer

    whole = GaussianOptimizer.step

    def full(self, step, radii):
        if step in (0, 33):
            raise torch.OutOfMemoryError(FULL)
        whole(self, step, radii)

    monkeypatch.setattr(GaussianOptimizer, "step", full)
    assert train(tmp_path / "toy") == 2
    # In the very first step: nothing is there that would stand in the next attempt's way.
    assert not (tmp_path / "toy").exists() and "last.safetensors" not in capsys.readouterr().err
    monkeypatch.setattr(
        GaussianOptimizer, "step", lambda self, step, radii: (whole if step == 0 else full)(self, step, radii)
    )
    assert train(tmp_path / "toy") == 2
    assert read_record(tmp_path / "toy/checkpoints/last.safetensors")["step"] == 20


def test_a_picture_that_does_not_fit_into_memory_is_one_line(trained, tmp_path, monkeypatch, capsys):
    from nfc_gs.model import SplatModel

    def full(self, *arguments, **named):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(SplatModel, "render", full)
    assert nfc_gs("render", trained, "--output", tmp_path / "out") == 2
    assert "CUDA out of memory: make the pictures smaller" in capsys.readouterr().err


def test_a_last_look_that_was_interrupted_is_made_up_for(tmp_path, monkeypatch):
    from nfc_gs.training.trainer import Trainer

    evaluate = Trainer.evaluate

    def refused(self):
        raise KeyboardInterrupt

    # Interrupted in the last look at the held-out views: resuming measures, though no step is left.
    monkeypatch.setattr(Trainer, "evaluate", refused)
    assert train(tmp_path / "toy", "steps=20") == 130
    assert not (tmp_path / "toy/metrics.json").exists()
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert nfc_gs("train", "--resume", tmp_path / "toy") == 0
    assert json.loads((tmp_path / "toy/metrics.json").read_text())["steps"] == 20


@pytest.mark.parametrize("name", ["2024-05-01", "null", "a: b", "${HOME} #1"])
def test_a_run_folder_may_be_called_anything(name, trained, tmp_path):
    shutil.copytree(trained, tmp_path / name)
    assert nfc_gs("export", tmp_path / name, "--output", tmp_path / "a.ply") == 0


def test_a_model_is_not_drawn_with_another_code_than_it_was_trained_with(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    config = yaml.safe_load((tmp_path / "copy/config.yaml").read_text())
    (tmp_path / "copy/config.yaml").write_text(yaml.safe_dump({**config, "code": {"kind": "gray"}}))
    assert nfc_gs("export", tmp_path / "copy", "--output", tmp_path / "a.ply") == 2
    assert "was trained with code {'kind': 'identity'}" in capsys.readouterr().err


def read_record(path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["nfc_gs"])


def test_eval_render_and_export_need_only_the_run_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = json.loads((trained / "metrics.json").read_text())
    assert nfc_gs("eval", trained) == 0
    after = json.loads((trained / "metrics.json").read_text())
    # The checkpoint holds the float32 parameters exactly, so the same picture comes out.
    assert after["psnr"] == before["psnr"]
    for mode in ("rgb", "depth", "alpha", "error", "confidence"):
        assert nfc_gs("render", trained, "--split", "test", "--mode", mode, "--output", tmp_path / mode) == 0
        assert len(list((tmp_path / mode).glob("*.png"))) == 2
    assert nfc_gs("export", trained, "--kind", "ply", "--output", tmp_path / "a.ply") == 0
    assert (tmp_path / "a.ply").read_bytes() == (trained / "exports/toy.ply").read_bytes()


def test_gaussians_that_hardly_show_are_left_out_of_an_export(trained, tmp_path, capsys):
    whole, fewer = tmp_path / "whole.ply", tmp_path / "fewer.ply"
    assert nfc_gs("export", trained, "--output", whole) == 0
    assert nfc_gs("export", trained, "--min-weight", "1", "--min-confidence", "0.1", "--output", fewer) == 0
    said = capsys.readouterr().out
    assert "left out" in said and "of weight below 1" in said
    counts = [int(re.search(rb"element vertex (\d+)", path.read_bytes())[1]) for path in (whole, fewer)]
    assert 0 < counts[1] < counts[0]
    assert nfc_gs("export", trained, "--min-weight", "1e9", "--output", tmp_path / "none.ply") == 2
    assert "no Gaussian of" in capsys.readouterr().err


def test_a_full_disk_leaves_the_previous_checkpoint(trained, tmp_path, monkeypatch, capsys):
    from nfc_gs.training import checkpoint

    def refuse(*_):
        raise OSError(28, "No space left on device")

    before = (trained / "checkpoints/last.safetensors").read_bytes()
    from nfc_gs.training import run

    trainer = run.resume(trained)
    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with pytest.raises(checkpoint.CheckpointError, match="No space left on device; the previous checkpoint is kept"):
        checkpoint.save(trainer, trained / "checkpoints/last.safetensors")
    assert (trained / "checkpoints/last.safetensors").read_bytes() == before
    assert not list((trained / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "at least one settings file"),
        (["train", "{toy}", "steps=-5"], "greater than 0"),
        (["train", "{toy}", "stpes=5"], "did you mean 'steps'?"),
        (["train", "{toy}", "strategy.kind=mmc"], "did you mean 'mcmc'?"),
        (["train", "{toy}", "dataset.size=big"], "dataset"),
        (["train", "{toy}", "output={runs}", "name=toy"], "--resume"),
        (["train", "--resume", "{runs}/nowhere"], "no such run folder"),
        (["train", "--resume", "{runs}/toy", "steps=9"], "--resume takes its settings from the run folder"),
        (["train", "{toy}", "losses.l1=null", "losses.dssim=null"], "none acts at every step from 0%"),
        (
            ["train", "{toy}", "losses.l1=null", "losses.dssim=null", "losses.ray_variance={{every: 2}}"],
            "none acts at every step from 0%",
        ),
        (["train", "{toy}", "losses.l1.stop=0.5", "losses.dssim.stop=0.5"], "none acts at every step from 50%"),
        (
            ["train", "{toy}", "output=o", "losses.l1=null", "losses.dssim=null", "losses.opacity.weight=1"],
            "none compares",
        ),
        (["train", "{toy}", "output=o", "losses.alpha_bce.weight=1", "dataset.alpha=false"], "has no alpha"),
        (["train", "{toy}", "dataset.kind=.toy"], "neither a kind"),
        (["train", "{toy}", "output=/dev/null"], "cannot be written"),
        (["train", "{toy}", "output={runs}/toy", "name=config.yaml"], "is a file"),
        (["eval", "{runs}"], "not a run folder"),
        (["export", "{runs}/toy", "--kind", "plly", "--output", "x.ply"], "did you mean 'ply'?"),
        (["kinds", "code"], "did you mean 'codes'?"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments, expected, trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"toy": REPOSITORY / "configs/toy.yaml", "runs": trained.parent}
    capsys.readouterr()
    assert nfc_gs(*(text.format(**names) for text in arguments)) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert len(printed.strip().splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_checkpoint_is_named(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    last = tmp_path / "copy/checkpoints/last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    assert nfc_gs("eval", tmp_path / "copy") == 2
    assert "is not a checkpoint of nfc-gs, or is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"format": 1}, "has checkpoint format 1, this version reads 2; train anew"), ({"extent": None}, "lacks extent")],
)
def test_a_checkpoint_of_another_version_is_one_line(change, expected, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    last = tmp_path / "copy/checkpoints/last.safetensors"
    record = {key: value for key, value in {**read_record(last), **change}.items() if value is not None}
    save_file(load_file(last), last, metadata={"nfc_gs": json.dumps(record)})
    for arguments in (["eval", tmp_path / "copy"], ["train", "--resume", tmp_path / "copy"]):
        assert nfc_gs(*arguments) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1


def test_a_photograph_that_goes_bad_costs_no_finished_step(tmp_path, monkeypatch, capsys):
    from nfc_gs.captures.photographs import PhotographStore
    from nfc_gs.captures.pictures import DatasetError

    get, calls = PhotographStore.get, []

    def bad(self, number):
        calls.append(number)
        if len(calls) == 8:
            raise DatasetError("photo.png: the picture is corrupt; restore it")
        return get(self, number)

    monkeypatch.setattr(PhotographStore, "get", bad)
    assert train(tmp_path / "toy", "steps=12") == 2
    assert read_record(tmp_path / "toy/checkpoints/last.safetensors")["step"] == 7
    assert nfc_gs("train", "--resume", tmp_path / "toy") == 0


@pytest.mark.parametrize(
    "arguments", [["export", "RUN"], ["render", "RUN", "--mode", "x", "--output", "o"], ["--bad"], []]
)
def test_a_wrong_command_line_gets_one_line_too(arguments, capsys):
    with pytest.raises(SystemExit) as status:
        nfc_gs(*arguments)
    assert status.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("nfc-gs: ")
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("start", ["0.5", "1.0"])
def test_a_run_of_few_bits_is_evaluated_and_read_back_rounded(tmp_path, start):
    from nfc_gs.training import run

    toy = REPOSITORY / "configs/toy.yaml"
    settings = ["steps=4", "rounding.colour_bits=4", "rounding.opacity_bits=4", f"rounding.start={start}"]
    assert nfc_gs("train", toy, f"output={tmp_path}", "name=few", *settings) == 0
    model = run.open_run(tmp_path / "few").model
    for values in (model.base_colours(model.gaussians), model.opacities()):
        torch.testing.assert_close(values * 15, (values * 15).round(), rtol=0, atol=1e-5)  # float32
    before = json.loads((tmp_path / "few/metrics.json").read_text())["psnr"]
    assert nfc_gs("eval", tmp_path / "few") == 0
    assert json.loads((tmp_path / "few/metrics.json").read_text())["psnr"] == before
