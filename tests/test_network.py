import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from sdm_cli.config import ModelConfig
from sdm_cli.method.encoder import ENCODER_SIZES, EncoderSizes
from sdm_cli.method.network import MessengerNetwork, build_network
from sdm_cli.method.u2l import _map_deviation

HERE = Path(__file__).parent
N_CLASSES = 5
TINY = EncoderSizes((16, 32, 40, 64), (2, 2, 2, 2))


def tiny_config(*stages):
    return ModelConfig(head_width=64, messenger_stages=stages, messenger_dropout=0, head_dropout=0, drop_path=0)


def load_plain_network():
    path = HERE.parent / "benchmarks" / "plain.py"
    spec = importlib.util.spec_from_file_location("plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainNetwork


PlainNetwork = load_plain_network()


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden" / "model.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def load_golden(network, golden):
    network.load_state_dict(
        {name.removeprefix("sd/"): value for name, value in golden.items() if name.startswith("sd/")}
    )
    return network


@pytest.fixture
def network(golden):
    return load_golden(MessengerNetwork(TINY, tiny_config(1, 2, 3, 4), N_CLASSES), golden).double().eval()


def slices(golden, name, dtype=torch.float64):
    return (golden[f"in/{name}"].float() / 255).to(dtype)


def sampled(gradient):
    flat = gradient.flatten()
    return flat[:: -(-len(flat) // 200)]


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=atol)


# Golden parity with the authors' code.


def test_encoder_features(network, golden):
    features = network.backbone(slices(golden, "eval3")[:1])
    for stage, feature in enumerate(features, start=1):
        assert_close(feature, golden[f"feat64/eval1_c{stage}"], 1e-10)


@pytest.mark.parametrize("exchange", ["image", "batch"])
def test_messenger_of_one_slice(network, golden, exchange):
    features = network.backbone(slices(golden, "eval3")[:1])
    delivered = network.framework.messenger(4).deliver(features[3], exchange)
    assert_close(delivered, golden["e3_64/eval1"], 1e-10)


def test_messenger_across_the_batch(network, golden):
    features = network.backbone(slices(golden, "eval3"))
    assert_close(network.framework.messenger(4).deliver(features[3], "batch"), golden["e3_64/eval3"], 1e-10)
    alone = network.framework.messenger(4).deliver(features[3], "image")
    assert_close(alone[:1], golden["e3_64/eval1"], 1e-10)
    assert (alone - golden["e3_64/eval3"]).abs().max() > 1e-3


def test_logits_in_evaluation(network, golden):
    images = slices(golden, "eval3")
    with torch.no_grad():
        assert_close(network.predict(images)[:1, :, ::2, ::2], golden["out64/eval1"], 1e-10)
        assert_close(network.predict(images, "batch")[..., ::2, ::2], golden["out64/eval3"], 1e-6)


def test_logits_in_float32(network, golden):
    with torch.no_grad():
        logits = network.float().predict(slices(golden, "eval3", torch.float32)[:1])
    assert_close(logits[..., ::2, ::2], golden["out64/eval1"], 1e-5)


LAST_STAGE = HERE.parents[1] / "shared" / "golden" / "model_FFFT.npz"


@pytest.mark.skipif(not LAST_STAGE.is_file(), reason="3.8 MB of weights, not part of the repository")
def test_the_messenger_at_the_last_stage_alone():
    """The published 20 % run; the other tests have it at all four stages."""
    with np.load(LAST_STAGE) as file:
        golden = {name: torch.from_numpy(file[name]) for name in file}
    network = load_golden(MessengerNetwork(TINY, tiny_config(4), N_CLASSES), golden).double().eval()
    with torch.no_grad():
        assert_close(network.predict(golden["in/eval1"].double()), golden["out64/eval1"], 1e-10)
        assert_close(network.predict(golden["in/eval3"].double(), "batch"), golden["out64/eval3"], 1e-6)
    images = golden["in/train4"].double()
    logits = torch.cat(network.train()(images[:2], images[2:]))
    assert_close(logits, golden["out64/train4"], 1e-10)
    assert_close(network.framework.decoder.linear_fuse.bn.running_var, golden["bn64/running_var"], 1e-10)


def test_training_step(network, golden):
    network.train()
    images = slices(golden, "train4")
    deepest = []
    network.framework.messenger(4).register_forward_hook(lambda _module, _inputs, halves: deepest.append(halves))
    logits = torch.cat(network(images[:2], images[2:]))
    assert_close(logits[..., ::4, ::4], golden["out64/train4"], 1e-10)
    e3 = torch.cat(deepest[0])
    assert_close(e3, golden["e3_64/train4"], 1e-10)
    loss = (logits * golden["in/loss_w_out"]).sum() + (e3 * golden["in/loss_w_e3"]).sum()
    torch.testing.assert_close(loss, golden["loss64"], rtol=1e-12, atol=0)
    loss.backward()
    norm = network.framework.decoder.linear_fuse.bn
    assert_close(norm.running_mean, golden["bn64/running_mean"], 1e-10)
    assert_close(norm.running_var, golden["bn64/running_var"], 1e-10)
    names = [name.removeprefix("grad64/") for name in golden if name.startswith("grad64/")]
    assert len(names) > 60
    for name in names:
        expected = golden[f"grad64/{name}"]
        scale = max(1.0, expected.abs().max().item())
        assert_close(sampled(network.get_parameter(name).grad), expected, 1e-10 * scale)


def test_float32_training_logits(network, golden):
    network.float().train()
    images = slices(golden, "train4", torch.float32)
    assert_close(torch.cat(network(images[:2], images[2:]))[..., ::4, ::4], golden["out64/train4"], 1e-5)


def test_plain_baseline_has_the_golden_logits(golden):
    plain = load_golden(PlainNetwork(TINY, tiny_config(1, 2, 3, 4), N_CLASSES), golden).double().eval()
    with torch.no_grad():
        assert_close(plain.predict(slices(golden, "eval3")[:1])[..., ::2, ::2], golden["out64/eval1"], 1e-10)
        assert_close(plain.predict(slices(golden, "eval3"))[..., ::2, ::2], golden["out64/eval3"], 1e-6)


# The plain formulation, in configurations and sizes that the golden file does not hold.


def both_networks(*stages):
    torch.manual_seed(0)
    network = MessengerNetwork(TINY, tiny_config(*stages), N_CLASSES)
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or "norm" in name or "bn" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    norm = network.framework.decoder.linear_fuse.bn
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    plain = PlainNetwork(TINY, tiny_config(*stages), N_CLASSES)
    plain.load_state_dict(network.state_dict())
    return network.double(), plain.double()


@pytest.mark.parametrize("stages", [(), (4,), (2, 3)])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_equals_the_plain_formulation(stages, size):
    network, plain = both_networks(*stages)
    images = torch.rand(4, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(network.eval().predict(images, "batch"), plain.eval().predict(images), 1e-10)
    network.train(), plain.train()
    weight = torch.randn(4, N_CLASSES, *size, dtype=torch.float64)
    for each in (network, plain):
        logits = torch.cat(each(images[:2], images[2:]))
        (logits * weight).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in network.named_parameters():
        scale = max(1.0, theirs[name].grad.abs().max().item())
        assert_close(parameter.grad, theirs[name].grad, 1e-10 * scale)
    for name, value in plain.named_buffers():
        assert_close(network.get_buffer(name), value, 1e-10)


def test_odd_number_of_slices_and_unequal_halves():
    network, _ = both_networks(4)
    logits_l, logits_u = network.train()(*torch.rand(5, 1, 64, 64, dtype=torch.float64).split([2, 3]))
    assert logits_l.shape == (2, N_CLASSES, 64, 64)
    assert logits_u.shape == (3, N_CLASSES, 64, 64)


def test_labeled_only_twin_is_the_labeled_branch_without_messenger():
    network, plain = both_networks()
    images = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    logits, nothing = network.train()(images, None)
    assert nothing is None
    assert_close(logits, torch.cat(plain.train()(images[:1], images[1:])), 1e-10)


# Properties.


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_a_prediction_does_not_depend_on_its_batch(network, golden, size):
    images = slices(golden, "eval3")[:, :, : size[0], :]
    images = torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        together = network.predict(images)
        for index in range(3):
            assert_close(together[index : index + 1], network.predict(images[index : index + 1]), 1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_grey_slice_equals_three_equal_channels(network, golden, training):
    network.train(training)
    grey = slices(golden, "eval3")[:2, :1]
    with torch.no_grad():
        for one, three in zip(
            network(grey[:1], grey[1:]), network(grey[:1].repeat(1, 3, 1, 1), grey[1:].repeat(1, 3, 1, 1)), strict=True
        ):
            assert_close(one, three, 1e-12)


@pytest.mark.parametrize("size", [(33, 40), (97, 64), (31, 32)])
def test_odd_sizes_come_back(network, size):
    with torch.no_grad():
        logits = network.predict(torch.rand(2, 1, *size, dtype=torch.float64))
    assert logits.shape == (2, N_CLASSES, *size)
    assert logits.isfinite().all()


def test_half_precision_stays_near(network, golden):
    network.float()
    images = slices(golden, "eval3", torch.float32)
    with torch.no_grad():
        exact = network.predict(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.predict(images)
    assert (rounded.float() - exact).square().mean() < 1e-3 * exact.square().mean()


def test_half_precision_trains(network, golden):
    network.float().train()
    images = slices(golden, "train4", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat(network(images[:2], images[2:]))
    logits.float().square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_dropout_and_drop_path_act_in_training_alone():
    torch.manual_seed(0)
    network = build_network(ModelConfig(encoder="mit-b0", head_width=32), n_classes=3)
    images = torch.rand(4, 1, 64, 64)
    with torch.no_grad():
        first, second = (network.train()(images[:2], images[2:])[0] for _ in range(2))
        assert not torch.equal(first, second)
        network.eval()
        assert torch.equal(network.predict(images), network.predict(images))


def test_channel_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    config = ModelConfig(head_width=256, messenger_stages=(), head_dropout=0.5, drop_path=0)
    head = MessengerNetwork(TINY, config, 3).framework.decoder.train()
    head.linear_fuse.bn.momentum = 0.0
    maps = [torch.randn(2, width, 16 >> i, 16 >> i) for i, width in enumerate(TINY.widths)]
    with torch.no_grad():
        mean = torch.stack([head(maps) for _ in range(400)]).mean(0)
        head.dropout = 0.0
        exact = head(maps)
    assert (mean - exact).square().mean() < 0.01 * exact.square().mean()


def test_published_sizes(published_encoder):
    millions = {
        name: sum(p.numel() for p in MessengerNetwork(sizes, tiny_config(), 2).backbone.parameters()) / 1e6
        for name, sizes in ENCODER_SIZES.items()
        if name in ("mit-b0", "mit-b1", "mit-b2")
    }
    assert millions == pytest.approx({"mit-b0": 3.32, "mit-b1": 13.15, "mit-b2": 24.2}, abs=0.01)


def test_the_messenger_survives_float16():
    torch.manual_seed(0)
    query, key = 30 * torch.randn(2, 1, 64, 16), 30 * torch.randn(1, 1, 128, 16)
    expected = _map_deviation(query, key)
    with torch.autocast("cpu", dtype=torch.float16):
        found = _map_deviation(query.half(), key.half())
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-2)
    assert torch.allclose(expected, ((query @ key.transpose(-1, -2)).var((-2, -1), correction=0, keepdim=True)).sqrt())
