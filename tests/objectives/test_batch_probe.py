"""The largest batch that is said to fit has really run, within the budget."""

import json

import pytest
import torch
from click.testing import CliRunner

from acuity.objectives.device.memory import MIB
from acuity.objectives.training.batch_probe import probe_batch
from acuity.study.cli.main import acuity
from acuity.study.config.loading import parse
from acuity.study.fit import cells_of

CPU = torch.device("cpu")


def test_batch_that_the_budget_does_not_bind_takes_one_step_after_a_small_one() -> None:
    fit = probe_batch("test_resnet", input_size=32, precision="fp32", device=CPU, budget_bytes=2**31, most=64)
    assert (fit.estimate, fit.verified, fit.steps) == (64, 64, 2)
    assert fit.images_per_second > 0


def test_verified_batch_stays_within_the_budget_and_near_the_edge() -> None:
    budget = 400 * MIB
    fit = probe_batch("test_resnet", input_size=64, precision="fp32", device=CPU, budget_bytes=budget)
    assert fit.verified % 8 == 0
    assert fit.verified >= fit.estimate / 2 > 8
    assert 0 < fit.peak_memory_mib <= 400
    assert fit.peak_memory_mib > 200
    assert fit.steps <= 4


def test_budget_that_holds_nothing_verifies_nothing() -> None:
    fit = probe_batch("test_resnet", input_size=64, precision="fp32", device=CPU, budget_bytes=MIB // 4)
    assert (fit.estimate, fit.verified) == (0, 0)


def test_every_network_and_resolution_of_an_experiment_is_a_cell() -> None:
    experiment = parse(
        {
            "name": "nih",
            "labels": ["Nodule"],
            "data": {"index": "i.csv", "images": "images"},
            "search": {
                "resolutions": [64, 32],
                "architectures": ["test_resnet", "test_vit"],
                "trials": 12,
                "max_batch_size": 96,
            },
            "training": {"epochs": 1, "network_input": 128, "precision": "bf16"},
        },
        source="nih",
    )
    cells = cells_of(experiment)
    assert [(cell.architecture, cell.resolution) for cell in cells] == [
        ("test_resnet", 32), ("test_resnet", 64), ("test_vit", 32), ("test_vit", 64),
    ]  # fmt: skip
    assert {(cell.input_size, cell.precision, cell.most) for cell in cells} == {(128, "bf16", 96)}


def test_command_prints_what_was_found_and_says_what_it_needs() -> None:
    done = CliRunner().invoke(acuity, ["fit", "test_resnet", "32", "--device", "cpu", "--most", "16", "--json"])
    assert done.exit_code == 0, done.exception
    (found,) = json.loads(done.stdout)["fits"]
    assert (found["architecture"], found["resolution"], found["verified"]) == ("test_resnet", 32, 16)
    assert CliRunner().invoke(acuity, ["fit", "test_resnet"]).exit_code == 2
    unknown = CliRunner().invoke(acuity, ["fit", "test_resnot", "32"])
    assert "test_resnet" in str(unknown.exception)


@pytest.mark.gpu
def test_on_a_gpu_the_edge_is_within_three_per_cent() -> None:
    device = torch.device("cuda")
    budget = 2 * 2**30
    fit = probe_batch("resnet10t", input_size=128, precision="bf16", device=device, budget_bytes=budget)
    assert fit.steps <= 3
    assert 0.9 * budget < fit.peak_memory_mib * MIB <= budget or fit.verified == 1024
