"""TensorBoard events in the run directory, which config.tensorboard turns on and off."""

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from mmrl.training.trackers.base import Start, Status, Tracker


class TensorBoard(Tracker):
    """Writes TensorBoard events.

    It has a key of its own and its files are a part of the run: a disk that is full ends training,
    as for other files of the run.

    Args:
      purge_step: events from this step on are dropped, because the resumed run repeats those steps;
        None: the run is new.
    """

    def __init__(self, *, purge_step: int | None = None) -> None:
        self._purge_step = purge_step
        self._board: SummaryWriter | None = None

    def start(self, start: Start) -> str:
        """Opens a file of events in the folder."""
        self._board = SummaryWriter(str(start.folder), purge_step=self._purge_step)
        return ""

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one event for each value."""
        assert self._board is not None
        for name, value in values.items():
            # TensorBoard tags may not contain "@".
            self._board.add_scalar(f"{kind}/{name.replace('@', '_')}", value, step)

    def close(self, status: Status) -> None:
        """Flushes and closes the file."""
        if self._board is not None:
            self._board.close()
