"""How gsplat's kernels are compiled, over a stand-in for gsplat; and what the doctor says of it."""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from nfc_gs.rasterizers import auto
from nfc_gs.rasterizers import gsplat as ours
from nfc_gs.rasterizers.gsplat import NoGpuError, compile_jobs, compile_kernels
from tests.conftest import REPOSITORY

# What gsplat 1.5.3 does when it compiles, in short: it deletes what is left of an earlier compilation.
DELETES = """
import os, shutil, types
shutil.rmtree({kernels!r})
shutil.rmtree({other!r})
_C = types.SimpleNamespace(__file__={kernels!r} + "/jobs_" + os.environ["MAX_JOBS"])
"""


@pytest.fixture
def gsplat(tmp_path, monkeypatch):
    """Puts a gsplat in the path whose backend is the given text."""
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        monkeypatch.delitem(sys.modules, name)

    def write(backend: str) -> None:
        folder = tmp_path / "gsplat/cuda"
        folder.mkdir(parents=True)
        for path in (folder.parent / "__init__.py", folder / "__init__.py"):
            path.touch()
        (folder / "_backend.py").write_text(backend)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        del sys.modules[name]


def test_a_compilation_that_was_broken_off_is_taken_up(gsplat, tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    kernels, other = tmp_path / "gsplat_cuda", tmp_path / "other"
    kernels.mkdir(), other.mkdir()
    (kernels / "left.o").touch()
    gsplat(DELETES.format(kernels=str(kernels), other=str(other)))
    before = shutil.rmtree
    assert compile_kernels() == kernels / "jobs_3"
    assert (kernels / "left.o").exists() and not other.exists()
    assert shutil.rmtree is before
    with tempfile.TemporaryDirectory() as folder:
        pass
    assert not Path(folder).exists()


def test_the_number_of_jobs_is_set_for_the_compilation_only(gsplat, tmp_path, monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(ours, "compile_jobs", lambda: 7)
    gsplat(DELETES.format(kernels=str(tmp_path / "gsplat_cuda"), other=tempfile.mkdtemp()))
    assert compile_kernels().name == "jobs_7"
    assert "MAX_JOBS" not in ours.os.environ


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("_C = None", "found no CUDA compiler"),
        (
            "raise RuntimeError(\"Error building extension 'gsplat_cuda': [1/2] nvcc\\nx.cu(3): error: bad\\nninja\")",
            ": bad",
        ),
        ("import no_such_module", "No module named 'no_such_module'"),
        (
            "try: raise OSError('CUDA_HOME is not set')\nexcept OSError: raise ImportError('x.so: no such file')",
            "CUDA_HOME is",
        ),
        # What is left where a link was broken off, or a disk was full.
        (
            "raise ImportError('/home/a/kernels/gsplat_cuda/gsplat_cuda.so: file too short')",
            "file too short; delete /home/a/kernels/gsplat_cuda and start again",
        ),
    ],
)
def test_a_compilation_that_fails_is_told_in_one_line(gsplat, backend, said):
    gsplat(backend)
    with pytest.raises(NoGpuError, match=said) as refused:
        compile_kernels()
    assert len(str(refused.value).splitlines()) == 1


def compiler_of(version, folder, monkeypatch):
    (folder / "bin").mkdir()
    (folder / "bin/nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n")
    (folder / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder))


def test_a_compilation_that_fails_by_another_cudas_compiler_says_so(gsplat, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "cuda").mkdir()
    compiler_of("12.8", tmp_path / "cuda", monkeypatch)
    gsplat("raise ImportError('gsplat_cuda.so: undefined symbol: __cudaLaunchKernel')")
    with pytest.raises(
        NoGpuError, match=r"nvcc is 12\.8 but torch was built for CUDA 13\.0: make the two equal"
    ) as refused:
        compile_kernels()
    assert "undefined symbol" in str(refused.value) and len(str(refused.value).splitlines()) == 1


ONE_AFTER_THE_OTHER = """
import os, time, types
def note(word):
    with open({path!r}, "a") as file:
        file.write(f"{{word}} {{os.getpid()}}\\n")
note("begins")
time.sleep(0.5)
note("ends")
_C = types.SimpleNamespace(__file__="gsplat_cuda.so")
"""


def test_processes_of_one_machine_compile_one_after_the_other(gsplat, tmp_path):
    gsplat(ONE_AFTER_THE_OTHER.format(path=str(tmp_path / "notes")))
    code = "from nfc_gs.rasterizers.gsplat import compile_kernels; compile_kernels()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}", "TMPDIR": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    notes = (tmp_path / "notes").read_text().split()
    assert notes[0::2] == ["begins", "ends"] * 3
    assert notes[1::4] == notes[3::4] and len(set(notes[1::4])) == 3


@pytest.mark.parametrize(
    ("built", "said", "told"),
    [
        (
            "13.0",
            RuntimeError(
                "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by "
                "downloading\nand installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
            ),
            "torch sees no CUDA device (The NVIDIA driver on your system is too old (found version 12020))",
        ),
        (
            "13.0",
            RuntimeError(
                "Found no NVIDIA driver on your system. Please check that you\nhave an NVIDIA GPU and installed a driver."
            ),
            "torch sees no CUDA device (Found no NVIDIA driver on your system)",
        ),
        ("13.0", RuntimeError("No CUDA GPUs are available"), "torch sees no CUDA device (No CUDA GPUs are available)"),
        (None, AssertionError("Torch not compiled with CUDA enabled"), "torch sees no CUDA device"),
    ],
)
def test_a_driver_that_does_not_fit_is_told_in_one_line_and_not_warned_of(monkeypatch, built, said, told):
    def init():
        raise said

    def is_available():
        warnings.warn("CUDA initialization: the driver ...", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    ours._gsplat.cache_clear()
    auto.choose.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(NoGpuError) as refused:
                ours.Gsplat().device  # noqa: B018
            assert str(refused.value) == f"rasterizer gsplat: {told}; use rasterizer.kind=cpu"
            assert auto.choose().reason == f"cpu: {told}"
    finally:
        auto.choose.cache_clear()


@pytest.mark.parametrize(("gigabytes", "jobs"), [(100, 16), (13, 4), (1, 1)])
def test_no_more_is_compiled_at_a_time_than_memory_and_cores_allow(monkeypatch, gigabytes, jobs):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(ours.os, "cpu_count", lambda: 16)
    memory = type("Memory", (), {"available": gigabytes * 1e9})
    monkeypatch.setattr(ours.psutil, "virtual_memory", lambda: memory)
    assert compile_jobs() == jobs
    monkeypatch.setenv("MAX_JOBS", "5")
    assert compile_jobs() == 5


@pytest.mark.parametrize(
    ("architectures", "unlisted"),
    [
        ("", False),
        ("9.0", False),
        ("8.0 9.0a", False),
        ("8.0;8.6", True),
        ("9.1", True),
        ("8.0+PTX", False),
        ("Hopper", False),
    ],
)
def test_the_doctor_sees_a_list_of_architectures_that_does_not_serve_the_device(monkeypatch, architectures, unlisted):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert auto._unlisted() == ("9.0" if unlisted else None)


@pytest.mark.parametrize(
    ("nvcc", "mend"),
    [("13.2", "pip install -c constraints.txt"), ("12.8", "make the two equal"), (None, "install nvcc 13.0")],
)
def test_the_doctor_names_compiler_jobs_and_architectures_and_how_to_mend(monkeypatch, tmp_path, nvcc, mend):
    for name in ("TORCH_CUDA_ARCH_LIST", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAX_JOBS", "4")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "bin").mkdir()
    if nvcc:
        (tmp_path / "bin/nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.88'\n")
    (tmp_path / "bin/ninja").touch()
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(auto, "choose", lambda: auto.Choice(auto.Cpu(), "cpu: gsplat failed"))
    said = list(auto.diagnose())
    assert any(line.startswith("MAX_JOBS: 4; 4 of") for line in said)
    assert any(line.startswith("TORCH_CUDA_ARCH_LIST: not set") for line in said)
    assert (f"nvcc {nvcc} ({tmp_path / 'bin/nvcc'})" if nvcc else "nvcc: not found") in said
    assert said[-1].startswith("mend: ") and mend in said[-1]


def test_warming_says_why_nothing_was_compiled(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for the CPU only" in auto.warm_gsplat()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "set TORCH_CUDA_ARCH_LIST" in auto.warm_gsplat()


def test_warming_needs_no_device_where_the_architectures_are_named(gsplat, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gsplat("import types; _C = types.SimpleNamespace(__file__='/kernels/gsplat_cuda.so')")
    assert auto.warm_gsplat().startswith("in /kernels/gsplat_cuda.so, ")
