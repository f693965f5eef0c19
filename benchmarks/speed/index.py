"""Claim: NIH's whole index (112,120 rows) is read, filtered and split in under 5 s and 1 GiB.

The tables of CheXpert and PadChest are measured too, and pandas reads each file for comparison. Each run is a new
process, imports included. The table shows the median and the largest of five runs. NIH's table comes from
ACUITY_NIH_DIR, those of CheXpert and PadChest from the torchxrayvision package.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from child_process import run_script
from folders import NIH
from result_line import make_goal, print_result

RUNS = 5
_SHIPPED = Path(str(getattr(find_spec("torchxrayvision"), "origin", ""))).parent / "data"
TABLES = {
    "nih": NIH / "nih-metadata" / "Data_Entry_2017_v2020.csv.gz",
    "chexpert": _SHIPPED / "chexpert_train.csv.gz",
    "padchest": _SHIPPED / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
}


def main() -> None:
    """Time every table with both readers in turn, print the table and one line of JSON."""
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, path in TABLES.items():
        runs: dict[str, list[dict[str, Any]]] = {"acuity": [], "pandas": []}
        for _ in range(RUNS):
            for reader, taken in runs.items():
                taken.append(run_script(__file__, reader, str(path)))
        measured[name] = runs
        for reader, taken in runs.items():
            seconds = [run["seconds"] for run in taken]
            print(
                f"{name:>9} {reader:>7}: {statistics.median(seconds):5.2f} s (at most {max(seconds):.2f}), "
                f"{max(run['mib'] for run in taken):5.0f} MiB, {taken[0]['rows']:,.0f} rows",
                flush=True,
            )
    nih = measured["nih"]["acuity"]
    slowest, peak = max(run["seconds"] for run in nih), max(run["mib"] for run in nih)
    goals = [
        make_goal("nih_seconds_at_most", slowest, "< 5", met=slowest < 5),
        make_goal("nih_peak_mib", peak, "< 1024", met=peak < 1024),
    ]
    print_result("index", n=RUNS, goals=goals, runs=measured)


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
    filtered = apply_filters(index, Filters(views=("PA",), ages=(18, 100)))
    filtered_split = take_split(split, filtered.index, filtered.rows)
    most_frequent = max(index.labels, key=lambda label: int((index.target(label) == 1).sum()))
    check_label(filtered.index, filtered_split, most_frequent)
    return len(index.table)


def _read_with_pandas(path: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(path, low_memory=False, index_col=False))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _run(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
