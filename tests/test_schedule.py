from pathlib import Path

import numpy as np
import pytest
import torch

from sdm_cli.config import TrainConfig
from sdm_cli.method.schedule import first_semi_supervised_step, learning_rate, start_average, update_average


def test_learning_rates_are_the_authors():
    with np.load(Path(__file__).parent / "golden" / "lr.npz") as file:
        steps, in_effect = file["iters"], file["in_effect"]
    config = TrainConfig(epochs=300, lr=1e-3)
    rates = [learning_rate(int(step), 300 * 276, config) for step in steps]
    assert rates == pytest.approx(in_effect[:, 0], abs=1e-15, rel=1e-10)
    assert [rate * config.head_lr_factor for rate in rates] == pytest.approx(in_effect[:, 1], rel=1e-10)


def test_warm_up_rises_linearly_and_never_exceeds_the_polynomial():
    config = TrainConfig(steps=1000, lr=1.0, lr_warmup_steps=100)
    rates = [learning_rate(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[49] == pytest.approx(0.5, rel=0.05)
    assert max(rates) < 1 and rates[100:] == sorted(rates[100:], reverse=True)


def test_published_warm_up_is_the_first_six_of_300_epochs():
    assert first_semi_supervised_step(300 * 276, 0.02) == 6 * 276
    assert first_semi_supervised_step(1500, 0.2) == 300
    assert first_semi_supervised_step(10, 1.0) == 10


def test_average_follows_weights_and_running_statistics():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = start_average(network)
    assert not any(p.requires_grad for p in average.parameters())
    assert average[0].weight.data_ptr() != network[0].weight.data_ptr()
    with torch.no_grad():
        network[0].weight += 10
        network[1].running_mean += 10
        network[1].num_batches_tracked += 7
    before = average[0].weight.clone()
    update_average(average, network, step=0, decay=0.99)  # shorter at the start: decay 1 / 10
    assert torch.allclose(average[0].weight - before, torch.tensor(9.0))
    assert torch.allclose(average[1].running_mean, torch.tensor(9.0))
    assert average[1].num_batches_tracked == 7
    update_average(average, network, step=10**6, decay=0.99)
    assert torch.allclose(average[0].weight - before, torch.tensor(9.01))
