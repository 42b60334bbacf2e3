"""What torch raises in the middle of a run, as sentences; deterministic mode, which makes it raise."""

import os
import re

import pytest
import torch
from stores import make_store, tiny_preset
from torch.utils._python_dispatch import TorchDispatchMode

from sdm_cli.errors import SdmError
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("failures"), tiny_preset())


def fail_with(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(loop_module, "semi_supervised_step", fail)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_setting(store, tmp_path, monkeypatch, error):
    fail_with(monkeypatch, error)
    said = r"cpu does not hold a step of 2 pairs of 32 x 32 pixels \(it had taken (\d+\.\d) GB\): .* auto, which tries"
    with pytest.raises(SdmError, match=said) as caught:
        train(tiny_preset(), store, tmp_path / "a", "cpu")
    assert 0.1 < float(re.search(said, str(caught.value))[1]) < 100
    with pytest.raises(SdmError, match=r"a step of 1 pair .* a smaller train\.crop"):
        train(tiny_preset(train={"pairs": 1}), store, tmp_path / "b", "cpu")


@pytest.mark.parametrize(
    ("pairs", "accumulate", "said"), [(4, 2, (2, 4)), (6, 1, (3, 2)), (9, 1, (3, 3)), (5, 1, (1, 5))]
)
def test_out_of_memory_says_how_the_same_pairs_fit_in_more_parts(store, tmp_path, monkeypatch, pairs, accumulate, said):
    fail_with(monkeypatch, MemoryError())
    with pytest.raises(SdmError, match=f"--set train.pairs={said[0]} --set train.accumulate={said[1]} "):
        train(tiny_preset(train={"pairs": pairs, "accumulate": accumulate}), store, tmp_path / "run", "cpu")


def test_a_real_allocation_that_fails_is_told(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "semi_supervised_step", lambda *a, **k: torch.empty(2**50))
    with pytest.raises(SdmError, match="does not hold a step"):
        train(tiny_preset(), store, tmp_path / "run", "cpu")


def test_an_error_of_another_kind_stays_what_it_is(store, tmp_path, monkeypatch):
    fail_with(monkeypatch, RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train(tiny_preset(), store, tmp_path / "run", "cpu")


def test_deterministic_mode_refuses_an_operation_by_name_and_leaves_torch_as_it_was(store, tmp_path, monkeypatch):
    real, modes = loop_module.semi_supervised_step, []
    preset = tiny_preset(train={"deterministic": True, "steps": 1})

    def step(*arguments, **options):
        modes.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return real(*arguments, **options)

    def refused(*arguments, **options):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # has no deterministic form, also on a CPU

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(loop_module, "semi_supervised_step", step)
    train(preset, store, tmp_path / "a", "cpu")
    assert modes == [(True, ":4096:8")]
    monkeypatch.setattr(loop_module, "semi_supervised_step", refused)
    train_off = tiny_preset(train={"steps": 1})
    with pytest.raises(SdmError, match=r"train\.deterministic: put_ has no .* on cpu: set train\.deterministic=false"):
        train(preset, store, tmp_path / "b", "cpu")
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    modes.clear()
    monkeypatch.setattr(loop_module, "semi_supervised_step", step)
    train(train_off, store, tmp_path / "c", "cpu")
    assert modes == [(False, None)]


class Operations(TorchDispatchMode):
    """The names of all operations of torch while it is on, also of those going backward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*arguments, **(options or {}))


def test_no_operation_of_a_step_lacks_a_deterministic_form_on_a_gpu(store, tmp_path):
    """By torch's own list (`torch.use_deterministic_algorithms`); bilinear interpolation it takes apart by itself."""
    preset = tiny_preset(method={"labeled_only_fraction": 0.0}, train={"steps": 1})
    with Operations() as seen:
        train(preset, store, tmp_path / "run", "cpu")
    assert {"convolution_backward", "_log_softmax_backward_data"} <= seen.names
    assert not [name for name in seen.names if name.startswith(("nll_loss2d", "cumsum", "put_", "median", "histc"))]
    assert not {"grid_sampler_2d_backward", "reflection_pad2d_backward", "max_unpool2d"} & seen.names


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_the_allocator_is_told_is_said(store, tmp_path, monkeypatch, capsys, is_kept):
    monkeypatch.setattr("sdm_cli.runs.train.keep_freed_memory", lambda: is_kept)
    train(tiny_preset(), store, tmp_path / "run", "cpu")
    assert ("keeps freed memory" in capsys.readouterr().err) == is_kept
