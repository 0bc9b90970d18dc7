"""Weights & Biases, https://wandb.ai or a server of your own."""

import inspect
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from mmrl.training.trackers.base import Outcome, Page, Start, Status, Tracker, find_package
from mmrl.types import InputError

PATIENCE = 30.0
"""Seconds that the upload of what is left may take at the end."""


class Wandb(Tracker):
    """Sends the run to Weights & Biases.

    The package is told to collect nothing by itself: no console output, no code, no git state and
    no facts about the machine.

    Args:
      project: the project that the run belongs to.
      entity: the user or team that owns the project; by default that of the API key.
      run_name: the name of the run; by default that of the run directory.
      mode: online, or offline: writes to the run directory alone, for `wandb sync`.
      group: a group of runs that belong together; empty: none.
      tags: words by which runs can be filtered.
      page: what is sent of the summary page: numbers (a page without images, texts and ids of
        records), whole (the page as it is, with images and texts of records) or none.
    """

    package: ClassVar[str] = "wandb"

    def __init__(
        self,
        *,
        project: str = "mmrl",
        entity: str = "",
        run_name: str = "",
        mode: Literal["online", "offline"] = "online",
        group: str = "",
        tags: Sequence[str] = (),
        page: Page = "numbers",
    ) -> None:
        self._project, self._entity, self._name = project, entity, run_name
        self._mode, self._group, self._tags, self._page = mode, group, tuple(tags), page
        self._run: Any = None

    @staticmethod
    def check_options(where: str, given: Mapping[str, Any]) -> None:
        """Refuses names that no project can have."""
        project = given.get("project", "mmrl")
        if not project or set(project) & set("/\\#?%:"):
            raise InputError(f"{where}.project={project!r}; expected a name without / \\ # ? % :")

    def check(self) -> None:
        """Imports the package, and looks for an API key where one is needed."""
        wandb = find_package(self.package)
        if self._mode == "online" and not _is_known(wandb):
            raise InputError(
                "mode=online needs an API key: run wandb login, set WANDB_API_KEY, or use "
                "mode=offline"
            )

    def place(self) -> dict[str, str]:
        """Entity and project."""
        return {"entity": self._entity, "project": self._project}

    def start(self, start: Start) -> str:
        """Begins or continues the run."""
        wandb = find_package(self.package)
        known = wandb.Settings.model_fields
        quiet = {
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_job_creation": True,
            "save_code": False,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
            "finish_timeout": PATIENCE,
            "finish_timeout_raises": True,
        }
        self._run = wandb.init(
            project=self._project,
            entity=self._entity or None,
            name=self._name or start.title,
            group=self._group or None,
            tags=self._tags or None,
            mode=self._mode,
            dir=str(start.folder),
            config=dict(start.config),
            allow_val_change=True,
            id=start.id or secrets.token_hex(8),
            # Offline the id alone joins both parts, when they are synced.
            resume="allow" if self._mode == "online" else None,
            # The private ones differ between versions; what a version does not know it lacks.
            settings=wandb.Settings(**{key: one for key, one in quiet.items() if key in known}),
        )
        # A resumed run repeats steps, which W&B's own counter does not allow.
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Sends one row."""
        self._run.log({"step": step, **{f"{kind}/{name}": one for name, one in values.items()}})

    def outcome(self, outcome: Outcome) -> None:
        """Sets the summary values, and adds the page to the files of the run."""
        self._run.summary.update({f"results/{name}": one for name, one in outcome.values.items()})
        if (page := outcome.pages.get(self._page)) is not None:
            self._run.save(str(page), base_path=str(page.parent), policy="now")

    def close(self, status: Status) -> None:
        """Waits for the upload, `PATIENCE` seconds at most."""
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _is_known(wandb: Any) -> bool:
    """Whether there are credentials, without asking for them on a terminal."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False))
    # In earlier versions.
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key)
