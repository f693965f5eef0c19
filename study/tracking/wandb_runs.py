"""Runs in a project of Weights & Biases; with WANDB_MODE=offline in a folder that `wandb sync` sends."""

from pathlib import Path
from typing import Any

import platformdirs
import wandb

from acuity.study.tracking.interface import TrackedRun, Value


class WandbRuns:
    """A project. Neither the command line, the host, the code nor the output of the process is sent."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._run: Any = None
        self._settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="acuity",
            init_timeout=30,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._folder = Path(platformdirs.user_state_dir("acuity")) / "wandb"
        if wandb.setup().settings.mode not in ("offline", "disabled") and not wandb.api.api_key:
            raise PermissionError("no API key: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")

    def start(self, run: TrackedRun) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=run.name,
            group=run.experiment,
            job_type=run.kind,
            tags=[run.label[:64]] if run.label else [],
            config=dict(run.parameters),
            dir=str(self._folder),
            reinit="create_new",
            settings=self._settings,
        )

    def report(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics | {"step": step})

    def record(self, attributes: dict[str, Value]) -> None:
        self._run.summary.update(attributes)

    def end(self, state: str) -> None:
        self._run.summary["state"] = state
        self._run.finish(exit_code=1 if state == "failed" else 0)
