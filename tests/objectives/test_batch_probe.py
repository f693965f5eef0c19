"""The largest batch size found has run in a real step within the budget."""

import json
import os
from typing import Any, get_args, get_type_hints

import pytest
import torch
from click.testing import CliRunner

from acuity.objectives.device.memory import MIB
from acuity.objectives.errors import InputError
from acuity.objectives.training.batch_probe import probe_batch
from acuity.study.cli.main import acuity
from acuity.study.config.loading import parse
from acuity.study.config.schema import Training
from acuity.study.fit import searched_settings

CPU = torch.device("cpu")


def test_batch_size_that_the_budget_does_not_limit_takes_two_steps() -> None:
    fit = probe_batch("test_resnet", input_size=32, precision="fp32", device=CPU, budget_bytes=2**31, max_batch_size=64)
    assert (fit.estimate, fit.verified, fit.steps) == (64, 64, 2)
    assert fit.images_per_second > 0


def test_verified_batch_size_is_within_the_budget_and_near_its_limit() -> None:
    budget = 400 * MIB
    fit = probe_batch("test_resnet", input_size=64, precision="fp32", device=CPU, budget_bytes=budget)
    assert fit.verified % 8 == 0
    assert fit.verified >= fit.estimate / 2 > 8
    assert 0 < fit.peak_memory_mib <= 400
    assert fit.peak_memory_mib > 200
    assert fit.steps <= 4


def test_no_batch_size_is_verified_if_the_budget_is_too_small() -> None:
    fit = probe_batch("test_resnet", input_size=64, precision="fp32", device=CPU, budget_bytes=MIB // 4)
    assert (fit.estimate, fit.verified) == (0, 0)


def test_every_network_and_resolution_of_an_experiment_is_a_setting() -> None:
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
    settings = searched_settings(experiment)
    assert [(setting.architecture, setting.resolution) for setting in settings] == [
        ("test_resnet", 32), ("test_resnet", 64), ("test_vit", 32), ("test_vit", 64),
    ]  # fmt: skip
    assert {(setting.input_size, setting.precision, setting.max_batch_size) for setting in settings} == {
        (128, "bf16", 96)
    }


def test_command_prints_the_batch_size_and_names_a_missing_or_unknown_argument() -> None:
    done = CliRunner().invoke(acuity, ["fit", "test_resnet", "32", "--device", "cpu", "--most", "16", "--json"])
    assert done.exit_code == 0, done.exception
    (found,) = json.loads(done.stdout)["fits"]
    assert (found["architecture"], found["resolution"], found["verified"]) == ("test_resnet", 32, 16)
    assert CliRunner().invoke(acuity, ["fit", "test_resnet"]).exit_code == 2
    unknown = CliRunner().invoke(acuity, ["fit", "test_resnot", "32"])
    assert "test_resnet" in str(unknown.exception)


@pytest.mark.parametrize("command", [["fit", "test_resnet", "32"], ["worker", "nih"]], ids=lambda words: words[0])
def test_commands_that_train_expand_the_segments_of_a_gpu(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise InputError(f"allocator: {os.environ.get('PYTORCH_ALLOC_CONF')}")

    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setattr("acuity.study.fit.probe_batches", stop)
    monkeypatch.setattr("acuity.study.worker.loop.run_worker", stop)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    done = CliRunner().invoke(acuity, command)
    assert str(done.exception) == "allocator: expandable_segments:True"


def test_precisions_of_the_experiment_file_are_those_of_the_command() -> None:
    precisions = get_args(get_type_hints(Training)["precision"])
    assert precisions == ("fp32", "tf32", "bf16")
    (option,) = [option for option in acuity.commands["fit"].params if option.name == "precision"]
    assert tuple(option.type.choices) == precisions


@pytest.mark.gpu
def test_peak_on_a_gpu_is_above_nine_tenths_of_the_budget() -> None:
    device = torch.device("cuda")
    budget = 2 * 2**30
    fit = probe_batch("resnet10t", input_size=128, precision="bf16", device=device, budget_bytes=budget)
    assert fit.steps <= 3
    assert 0.9 * budget < fit.peak_memory_mib * MIB <= budget or fit.verified == 1024
