"""Claim: NIH's whole index (112,120 rows) is read, filtered and split in under 5 s and 1 GiB.

Also the other published tables, and beside them what pandas alone takes to read the same file. Each run is a process of
its own, imports included; the median of five, and the worst. NIH's table is that of ../shared/data (ACUITY_NIH_DIR),
CheXpert's and PadChest's those in the torchxrayvision package.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

RUNS = 5
_SHIPPED = Path(str(getattr(find_spec("torchxrayvision"), "origin", ""))).parent / "data"
_NIH = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-metadata"
TABLES = {
    "nih": _NIH / "Data_Entry_2017_v2020.csv.gz",
    "chexpert": _SHIPPED / "chexpert_train.csv.gz",
    "padchest": _SHIPPED / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
}


def main() -> None:
    """Time every table with both readers in turn, print the table and one line of JSON."""
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, path in TABLES.items():
        runs: dict[str, list[dict[str, float]]] = {"acuity": [], "pandas": []}
        for _ in range(RUNS):
            for reader, taken in runs.items():
                taken.append(_in_a_process(reader, path))
        measured[name] = runs
        for reader, taken in runs.items():
            seconds = [run["seconds"] for run in taken]
            print(
                f"{name:>9} {reader:>7}: {statistics.median(seconds):5.2f} s (at most {max(seconds):.2f}), "
                f"{max(run['mib'] for run in taken):5.0f} MiB, {taken[0]['rows']:,.0f} rows",
                flush=True,
            )
    print(json.dumps(_result(measured)))


def _in_a_process(reader: str, path: Path) -> dict[str, float]:
    said = subprocess.run([sys.executable, __file__, reader, str(path)], capture_output=True, text=True, check=True)
    run: dict[str, float] = json.loads(said.stdout)
    return run


def _run(reader: str, path: Path) -> None:
    began = time.perf_counter()
    rows = _read_filter_split(path) if reader == "acuity" else _read_with_pandas(path)
    seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": round(seconds, 3), "mib": round(mib), "rows": rows}))


def _read_filter_split(path: Path) -> int:
    from acuity.objectives.index.filters import Filters, apply_filters
    from acuity.objectives.index.image_index import read_index
    from acuity.objectives.split.split import check_label, read_or_make_split, take_split

    index = read_index(path, images=path.parent)
    with tempfile.TemporaryDirectory() as folder:
        split = read_or_make_split(index, path=Path(folder) / "split.csv")
    left = apply_filters(index, Filters(views=("PA",), ages=(18, 100)))
    mine = take_split(split, left.index, left.rows)
    common = max(index.labels, key=lambda label: int((index.target(label) == 1).sum()))
    check_label(left.index, mine, common)
    return len(index.table)


def _read_with_pandas(path: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(path, low_memory=False, index_col=False))


def _result(measured: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, object]:
    nih = measured["nih"]["acuity"]
    worst, peak = max(run["seconds"] for run in nih), max(run["mib"] for run in nih)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "benchmark": "index",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "n": RUNS,
        "runs": measured,
        "goals": [
            {"name": "nih_seconds_at_most", "value": worst, "goal": "< 5", "met": worst < 5},
            {"name": "nih_peak_mib", "value": peak, "goal": "< 1024", "met": peak < 1024},
        ],
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _run(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
