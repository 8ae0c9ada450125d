import os

import pytest
import torch

from ehr_ray.config.sections import TrainConfig
from ehr_ray.errors import UnrepeatableError
from ehr_ray.train.numerics import numerics, repeatable_products


def now():
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_what_the_plan_says_holds_within_and_not_after():
    before = now()
    with numerics(TrainConfig(matmul_precision="high", deterministic=True)):
        assert now() == ("high", True, True, False)
    assert now() == before
    with numerics(TrainConfig()):  # by itself torch has a GPU convolve in TF32
        assert now() == ("highest", False, False, False)
    assert now() == before == ("highest", False, True, True)


def test_a_kernel_that_cannot_repeat_is_named_with_the_remedy(monkeypatch):
    plan = TrainConfig(deterministic=True)
    with (
        pytest.raises(UnrepeatableError, match=r"train\.deterministic=true: upsample_cuda adds"),
        numerics(plan),
    ):
        raise RuntimeError("upsample_cuda does not have a deterministic implementation, but ...")
    product = (
        "Deterministic behavior was enabled with either ..., but this operation is not "
        "deterministic because it uses CuBLAS and you have CUDA >= 10.2."
    )
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with (
        pytest.raises(UnrepeatableError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0; unset it, or"),
        numerics(plan),
    ):
        raise RuntimeError(product)
    with pytest.raises(RuntimeError, match="out of memory"), numerics(plan):
        raise RuntimeError("out of memory")


def test_a_workspace_that_was_chosen_stays_and_any_other_is_set(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for given, kept in ((None, ":4096:8"), (":16:8", ":16:8")):
        if given:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
        repeatable_products()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == kept
