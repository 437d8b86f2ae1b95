"""The choice of a rasterizer."""

import pytest
import torch

from nfc_gs.config import UserError
from nfc_gs.rasterizers.auto import Auto, choose
from nfc_gs.rasterizers.cpu import Cpu
from nfc_gs.rasterizers.gsplat import Gsplat
from tests.rasterizers import scenes

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")


@without_gpu
def test_without_a_gpu_the_cpu_is_chosen_and_the_reason_told():
    choice = choose()
    assert choice.rasterizer == Cpu()
    assert choice.reason == "cpu: torch sees no CUDA device"
    assert Auto().device == "cpu"


@without_gpu
def test_gsplat_without_a_gpu_is_the_users_mistake():
    with pytest.raises(UserError, match="no CUDA device"):
        Gsplat()(scenes.splats(5, 3, 0, torch.float32), scenes.camera(20, 20), torch.zeros(3))


@without_gpu
def test_auto_draws_what_the_chosen_one_draws():
    splats, camera = scenes.splats(50, 3, 0, torch.float32), scenes.camera(30, 20)
    ours, right = Auto()(splats, camera, torch.zeros(3)), Cpu()(splats, camera, torch.zeros(3))
    assert torch.equal(ours.channels, right.channels)
