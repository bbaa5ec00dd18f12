"""Which of Liger's kernels a model gets, with a stand-in for the package; tests/gpu runs real kernels."""

import sys
import types

import pytest
import tiny
import torch

from llava.errors import UserError
from llava.model import liger

OPTIONS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def fused(module, x):
    return x


fused.__module__ = "liger_kernel.stand_in"


@pytest.fixture
def package(monkeypatch):
    """Liger with two families. They store their arguments, and replace the forward of the last norm."""
    calls = {}

    def of(family):
        def apply(model, **options):
            calls[family] = options
            model.model.norm.forward = types.MethodType(fused, model.model.norm)

        return apply

    patch = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {
        "llama": of("llama"),
        "qwen2": of("qwen2"),
        "mistral": lambda model, **options: None,
    }
    monkeypatch.setitem(sys.modules, patch.__name__, patch)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(liger, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_family_gets_its_own_kernels_without_ligers_loss(package, family, tmp_path):
    model = tiny.build(tmp_path, family)
    assert liger.apply_liger_kernels(model) == 1
    assert package == {family: OPTIONS}


@pytest.mark.parametrize("family", ["mpt", "qwen3"])
def test_a_family_without_kernels_is_refused(package, family, tmp_path):
    with pytest.raises(UserError, match=f"--use_liger_kernel.*{family}"):
        liger.apply_liger_kernels(tiny.build(tmp_path, family))


def test_a_run_in_which_nothing_was_replaced_is_refused(package, tmp_path):
    with pytest.raises(UserError, match="--use_liger_kernel.*no module"):
        liger.apply_liger_kernels(tiny.build(tmp_path, "mistral"))


def test_what_is_missing_is_said(package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--use_liger_kernel.*GPU"):
        liger.check_liger()
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install liger-kernel"):
        liger.check_liger()
