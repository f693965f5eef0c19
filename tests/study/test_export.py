"""An exported network gives the same scores under timm alone, and its model card has the right numbers."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from acuity.objectives.images.decoding import decode_grey
from acuity.objectives.images.resizing import Fit, area_average, fit_square
from acuity.objectives.statistics.calibration import PlattScaling, fit_platt_scaling
from acuity.objectives.statistics.metrics import auc
from acuity.objectives.training.prediction import score_images
from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database, open_storage
from acuity.study.cli.main import acuity
from acuity.study.confirmation.protocol import read_protocol
from acuity.study.dataset.image_set import ImageSet, open_folds, open_image_set
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered, checkpoints_of
from acuity.study.report import export as export_module
from acuity.study.report.export import export_network
from acuity.study.report.exported_network import choose_network
from acuity.study.results.answer import read_answer
from support.confirmed_experiment import EXPERIMENT, register_experiment, work_here

# The code of the model card, in a process that cannot import Acuity.
_BARE = """
import sys
for name in ("acuity", "optuna", "sqlalchemy"):
    sys.modules[name] = None
import numpy as np
{code}
images = torch.from_numpy(np.load("{images}"))
np.save("{scores}", score(images).double().numpy())
again = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
for (name, one), other in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
    assert torch.equal(one, other), name
print(*sorted(name for name in sys.modules if name in ("acuity", "optuna") and sys.modules[name]))
"""


def _scores_of_bare_timm(network: Path, images: NDArray[np.uint8], folder: Path) -> NDArray[np.float64]:
    """The scores of the model card's code for the images, in a process that cannot import Acuity."""
    pixels, scores = folder / "images.npy", folder / "scores.npy"
    np.save(pixels, images)
    (code,) = re.findall(r"```python\n(.*?)```", (network / "README.md").read_text(), re.DOTALL)
    script = _BARE.format(code=code.replace('Path(".")', f'Path("{network}")'), images=pixels, scores=scores)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    given: NDArray[np.float64] = np.load(scores)
    return given


def test_timm_alone_loads_the_network_and_gives_the_confirmed_scores(confirmed, tmp_path: Path) -> None:
    registered = confirmed.registered
    out = tmp_path / "network"
    with open_storage(confirmed.url) as database:
        description = export_network(database, registered, "Nodule", out, device="cpu")
        kept = choose_network(database, registered, "Nodule", resolution=None, device="cpu")
        stored = find_confirmation(database, "tiny")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "acuity.json",
        "config.json",
        "model.safetensors",
    ]
    assert stored is not None
    label = next(each for each in read_protocol(stored.protocol).labels if each.label == "Nodule")
    reference = label.reference
    assert description["network"]["resolution"] == reference
    image_set = open_image_set(registered.experiment)
    (fold,) = (run.fold for run in label.finalist(reference).runs if run.seed == description["network"]["seed"])
    assert fold is not None
    rows = np.concatenate([image_set.split.rows("validation"), open_folds(image_set, 3).test_rows(fold)])
    scores = _scores_of_bare_timm(out, image_set.cache.open(reference)[rows], tmp_path)
    assert np.abs(scores - kept.scores["score"].to_numpy()).max() < 1e-6


def test_description_has_the_confirmed_numbers_and_no_patient_or_file_name(confirmed, tmp_path: Path) -> None:
    registered = confirmed.registered
    with open_storage(confirmed.url) as database:
        description = export_network(database, registered, "Cardiomegaly", tmp_path / "x", resolution=16, device="cpu")
        chosen = choose_network(database, registered, "Cardiomegaly", resolution=16, device="cpu")
        with pytest.raises(UsageError, match="not confirmed at 64 px; there are networks at 16, 32 px"):
            choose_network(database, registered, "Cardiomegaly", resolution=64, device="cpu")
        with pytest.raises(UsageError, match=r"exists and is not empty"):
            export_network(database, registered, "Cardiomegaly", tmp_path / "x", device="cpu")
    assert description["status"] == "confirmed"
    found = next(each for each in chosen.confirmed["by_resolution"] if each["resolution"] == 16)  # type: ignore[index]
    assert description["confirmation"]["over_seeds"]["auc"] == found["auc"]
    validation, test = description["performance"]
    assert (validation["part"], test["part"]) == ("validation", "test")
    assert test["auc_low"] < test["auc"] < test["auc_high"]
    texts = "".join(path.read_text() for path in (tmp_path / "x").iterdir() if path.suffix in (".md", ".json"))
    index = open_image_set(registered.experiment).index
    assert not [name for name in index.table["file"] if name in texts]
    assert not [name for name in chosen.scores["patient"] if name in texts]
    assert str(registered.experiment.data.index.parent) not in texts
    assert "research only, not for clinical use" in texts.lower()
    of_one_trial = description | {"network": description["network"] | {"trials_searched": 1}}
    assert "; the best of 1 trial. Made with" in export_module._card(chosen, of_one_trial, None)
    before = export_module._card(chosen, of_one_trial | {"confirmation": None}, None)
    assert "This is the best of 1 trial on the validation patients" in before


def _search(
    database: Database, phantoms: Path, folder: Path, *, training: dict[str, Any], fit: Fit = "pad"
) -> tuple[Registered, ImageSet]:
    """An experiment with a finished search of four trials for one label."""
    table = tomllib.loads(EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images"))
    table |= {"labels": ["Nodule"], "training": training}
    table["data"]["fit"] = fit
    table["search"] |= {"resolutions": [16, 32], "trials": 4, "architectures": ["test_resnet"]}
    registered, image_set = register_experiment(database, table, folder)
    work_here(database, registered)
    return registered, image_set


def test_best_network_of_a_search_is_exported_before_a_confirmation(
    database: Database, phantoms: Path, tmp_path: Path
) -> None:
    registered, image_set = _search(database, phantoms, tmp_path, training={"epochs": 1})
    best = read_answer(database, "tiny").labels[0].best
    assert best is not None
    out = tmp_path / "network"
    arguments = ["export", "tiny", "--label", "Nodule", "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(acuity, [*arguments, "--storage", database.url.render_as_string(hide_password=False)])
    assert done.exit_code == 0, done.output
    assert "not confirmed: validation patients only, optimistic" in done.output
    description = json.loads((out / "acuity.json").read_text())
    assert [each["part"] for each in description["performance"]] == ["validation"]
    assert description["network"]["resolution"] == best.resolution
    assert description["network"]["trials_searched"] == 4

    rows = image_set.split.rows("validation")
    scores = _scores_of_bare_timm(out, image_set.cache.open(best.resolution)[rows], tmp_path)
    alone = auc(image_set.index.target("Nodule")[rows], scores)
    assert alone == pytest.approx(best.auc, abs=1e-4), "the AUC of the search"
    assert description["performance"][0]["auc"] == pytest.approx(alone, abs=1e-6)
    card = (out / "README.md").read_text()
    assert "**Not confirmed.** This is the best of 4 trials" in card
    assert f"| validation | {len(rows)} |" in card
    assert f"{alone:.3f} (" in card
    assert "No number here is of test patients." in card
    assert "| test |" not in card.partition("## Training patients")[0]

    shutil.rmtree(checkpoints_of(registered).folder)
    with pytest.raises(UsageError, match=r"is not in .*run this where the fleet's checkpoints are"):
        export_network(database, registered, "Nodule", tmp_path / "again", device="cpu")


def test_model_card_of_a_bf16_network_gives_the_scores_of_its_threshold(
    database: Database, phantoms: Path, tmp_path: Path
) -> None:
    registered, image_set = _search(database, phantoms, tmp_path, training={"epochs": 1, "precision": "bf16"})
    out = tmp_path / "network"
    description = export_network(database, registered, "Nodule", out, device="cpu")
    promised = choose_network(database, registered, "Nodule", resolution=None, device="cpu").scores["score"].to_numpy()
    rows = image_set.split.rows("validation")
    scores = _scores_of_bare_timm(out, image_set.cache.open(description["network"]["resolution"])[rows], tmp_path)
    assert np.abs(scores - promised).max() < 1e-6
    assert "torch.autocast" in description["output"]
    assert "computed in bfloat16" in (out / "README.md").read_text()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_code_of_the_model_card_turns_a_png_into_the_score_and_its_calibrated_probability(
    database: Database, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Fit
) -> None:
    registered, image_set = _search(database, phantoms, tmp_path, training={"epochs": 1}, fit=fit)
    out = tmp_path / "network"
    description = export_network(database, registered, "Nodule", out, device="cpu")
    scores = choose_network(database, registered, "Nodule", resolution=None, device="cpu").scores["score"].to_numpy()
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    (out / "use.py").write_text(code)

    names = np.array(image_set.index.names)[image_set.split.rows("validation")[:5]]
    files = [str(phantoms.parent / "images" / name) for name in names]
    bare = "import sys; sys.modules['acuity'] = None; import runpy; runpy.run_path('use.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", bare, *files], capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stderr
    printed = [re.fullmatch(r"(.*): score (\S+), probability (\S+), (.*)", line) for line in done.stdout.splitlines()]
    calibrate = PlattScaling(description["calibration"]["slope"], description["calibration"]["intercept"])
    threshold = description["threshold"]["score"]
    assert len(printed) == len(files)
    for line, file, score in zip(printed, files, scores, strict=False):
        assert line is not None
        assert line[1] == file
        assert float(line[2]) == pytest.approx(score, abs=1e-4)
        assert float(line[3]) == pytest.approx(float(calibrate(score)), abs=1e-4)
        assert line[4] == ("finding" if score >= threshold else "no finding")

    monkeypatch.chdir(out)
    monkeypatch.setattr(sys, "argv", ["use.py"])
    use = runpy.run_path("use.py")
    resolution = description["network"]["resolution"]
    colours = np.random.default_rng(0).integers(0, 256, (97, 60, 3)).astype(np.uint8)
    for pixels in (colours, colours[:, :, 0], colours.transpose(1, 0, 2)):
        cv2.imwrite("odd.png", pixels)
        grey = decode_grey(Path("odd.png").read_bytes()).pixels
        assert np.array_equal(use["read_png"]("odd.png")[0], area_average(fit_square(grey, fit), resolution))
    cv2.imwrite("deep.png", colours[:, :, 0].astype(np.uint16) * 16)
    with pytest.raises(ValueError, match=r"deep\.png is not a PNG of 8 bits"):
        use["read_png"]("deep.png")


def test_export_command_prints_the_status_of_the_network(confirmed, tmp_path: Path) -> None:
    arguments = ["export", "tiny", "--label", "Nodule", "--out", str(tmp_path / "n"), "--device", "cpu"]
    done = CliRunner().invoke(acuity, [*arguments, "--storage", confirmed.url])
    assert done.exit_code == 0, done.output
    assert "confirmed" in done.output
    assert json.loads((tmp_path / "n" / "config.json").read_text())["model_args"]["in_chans"] == 1


def test_recalibration_recovers_the_slope_and_intercept_of_simulated_outcomes() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, 40_000)
    targets = generator.random(40_000) < 1 / (1 + np.exp(-(0.5 * logits - 1.5)))
    scores = 1 / (1 + np.exp(-logits))
    found = fit_platt_scaling(targets, scores)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.intercept == pytest.approx(-1.5, abs=0.05)
    assert auc(targets, found(scores)) == pytest.approx(auc(targets, scores), abs=1e-9)
    apart = fit_platt_scaling([0, 0, 1, 1], [0.0, 0.1, 0.9, 1.0])
    assert np.isfinite([apart.slope, apart.intercept]).all()


def test_kept_scores_are_those_of_score_images(confirmed) -> None:
    """So a model card that reproduces the kept scores reproduces the scores of Acuity."""
    with open_storage(confirmed.url) as database:
        chosen = choose_network(database, confirmed.registered, "Nodule", resolution=None, device="cpu")
    image_set = open_image_set(confirmed.registered.experiment)
    rows = image_set.split.rows("validation")
    pixels = image_set.cache.open(chosen.hyperparameters.resolution)
    again = score_images(chosen.checkpoint, chosen.hyperparameters, pixels, rows, device=torch.device("cpu"))
    assert np.abs(again - chosen.scores["score"].to_numpy()[: len(rows)]).max() < 1e-6
