"""MLflow: a tracking server, or a database on this machine."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

from mmrl.training.trackers.base import Outcome, Page, Start, Status, Tracker, find_package
from mmrl.types import InputError

_BATCH = 100  # parameters or tags that one request may hold
_MOST = 1000  # metrics that one request may hold
_LENGTH = 500  # characters of the value of a parameter, in the servers that take the least
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Mlflow(Tracker):
    """Sends the run to MLflow.

    A parameter of MLflow cannot change. What a resumed run changes in the config becomes a tag
    `changed/KEY`.

    Args:
      experiment: the experiment, which is created if there is none of this name.
      tracking_uri: address of the server, or of a database such as sqlite:///runs.db; by default
        that of MLFLOW_TRACKING_URI.
      run_name: the name of the run; by default that of the run directory.
      page: what is sent of the summary page: numbers (a page without images, texts and ids of
        records), whole (the page as it is, with images and texts of records) or none.
    """

    package: ClassVar[str] = "mlflow-skinny"

    def __init__(
        self,
        *,
        experiment: str = "mmrl",
        tracking_uri: str = "",
        run_name: str = "",
        page: Page = "numbers",
    ) -> None:
        self._experiment, self._uri, self._name, self._page = (
            experiment,
            tracking_uri,
            run_name,
            page,
        )
        self._client: Any = None
        self._entities: Any = None
        self._id = ""

    @staticmethod
    def check_options(where: str, given: Mapping[str, Any]) -> None:
        """Refuses an experiment without a name."""
        if not given.get("experiment", "mmrl"):
            raise InputError(f"{where}.experiment is empty; expected the name of an experiment")

    def check(self) -> None:
        """Imports the package, and opens the store."""
        self._connect()

    def place(self) -> dict[str, str]:
        """Experiment and store."""
        return {"experiment": self._experiment, "tracking_uri": self._uri}

    def start(self, start: Start) -> str:
        """Begins or continues the run, and sends the config."""
        self._connect()
        # Without a template: MLflow's own fields of a run name user and command.
        title = self._name or start.title
        if start.id:
            self._id = start.id
            self._client.update_run(self._id, status="RUNNING", name=title)
        else:
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else None
            number = number or self._client.create_experiment(self._experiment)
            self._id = self._client.create_run(number, run_name=title).info.run_id
        self._send_config(start.config)
        return self._id

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Sends the values in one request, or in several."""
        self._send_metrics(step, {f"{kind}/{name}": one for name, one in values.items()})

    def outcome(self, outcome: Outcome) -> None:
        """Sends the results as metrics of their own, and the page as an artifact."""
        self._send_metrics(0, {f"results/{name}": one for name, one in outcome.values.items()})
        if (page := outcome.pages.get(self._page)) is not None:
            self._client.log_artifact(self._id, str(page))

    def close(self, status: Status) -> None:
        """States how the run ended."""
        self._client.set_terminated(self._id, status=_STATUS[status])

    def _connect(self) -> None:
        if self._client is None:
            mlflow = find_package(self.package, "mlflow")
            self._entities = find_package(self.package, "mlflow.entities")
            self._client = mlflow.MlflowClient(tracking_uri=self._uri or None)

    def _send_metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        made = (self._entities.Metric(_name(k), v, now, step) for k, v in values.items())
        for some in _parts(made, _MOST):
            self._client.log_batch(self._id, metrics=some)

    def _send_config(self, config: Mapping[str, Any]) -> None:
        given = {_name(key): str(value)[:_LENGTH] for key, value in _flat(config)}
        there = self._client.get_run(self._id).data.params
        new = (self._entities.Param(k, v) for k, v in given.items() if k not in there)
        for some in _parts(new, _BATCH):
            self._client.log_batch(self._id, params=some)
        changed = {k: v for k, v in given.items() if there.get(k, v) != v}
        tags = (self._entities.RunTag(f"changed/{k}", v) for k, v in changed.items())
        for some in _parts(tags, _BATCH):
            self._client.log_batch(self._id, tags=some)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(text: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w\-. /]", "_", text)


def _parts(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Lists of at most `most` items."""
    left = iter(items)
    while some := list(islice(left, most)):
        yield some
