"""The one training loop: any encoders, any objectives, any corpus, any mesh.

    data -> one jitted, donated step -> logs, evaluations, checkpoints

The loop waits for the device only when it logs, evaluates or saves, and it makes no implicit
transfer between host and device. The same command, started again, resumes from the last
checkpoint. On SIGTERM to any process, all processes save the same step and stop (see
`mmrl.devices.distributed`).
"""

import collections
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from mmrl import build, files, locks, streams, wiring
from mmrl import config as configs
from mmrl.data.batches.pipeline import BatchIterator, Examples, batch_shapes, training_batches
from mmrl.data.corpus import Corpus, describe
from mmrl.data.inputs import base as inputs
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import compile_cache, distributed, sharding
from mmrl.evaluators.base import Results
from mmrl.training import checkpoint, draw, forecast, initial, optim, run
from mmrl.training import scalars as metrics
from mmrl.training.clock import Clock
from mmrl.training.console import Console
from mmrl.training.predict import Predict
from mmrl.training.prefetch import Prefetch
from mmrl.training.profile import Profile
from mmrl.training.selection import Selection
from mmrl.training.step import State, TrainStep
from mmrl.training.trackers import sending
from mmrl.training.trackers.base import Outcome, Status
from mmrl.training.validation import Validation
from mmrl.types import BusyError, InputError, MachineError, NonFiniteError, PreemptedError

Finish = Callable[[run.Trained, dict[str, Results]], Mapping[str, Path]]


class Trainer:
    """Trains all steps of a run, from scratch or from the last checkpoint in `workdir`.

    The steps are config.total_steps or those of config.epochs, unless config.best.patience ends
    training before.

    The constructor locks the run directory and makes all checks; `run` trains.

    Args:
      config: from a config file; locked or not.
      workdir: the run directory, created when absent.
      fall_back: if the last checkpoint is damaged, continue from the last intact one; those after
        it are moved to `damaged/` of the run directory.

    Raises:
      InputError: config, data or workdir are invalid.
      DamageError: a file of the run is not as it was written, see `checkpoint.Checkpoints`.
      NonFiniteError: from `run`; a loss, gradient or embedding is not finite. The message names
        the step and, for a loss or gradient, the records.
      PreemptedError: from `run`; the process received SIGTERM. The message names the saved step.
      BusyError: another process trains in `workdir`.
      MachineError: the disk is full, `workdir` cannot be written or was removed, or the like.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: Path, *, fall_back: bool = False
    ) -> None:
        configs.validate(config)
        if not config.epochs:  # else the data decide how long the run is
            optim.schedule(config.optimizer, config.total_steps)
        self._fall_back, self._began = fall_back, False
        self.config, self.workdir = config, workdir
        self.first = jax.process_index() == 0
        self.console = Console(active=self.first)
        run.read_config(workdir)  # refuses a folder of something else before it is touched
        self._lock: locks.Lock | None = None
        self._trackers: list[sending.Sender] = []
        distributed.by_first(self._make_trackers)
        distributed.by_first(self._take_lock)
        with contextlib.ExitStack() as ending:
            ending.callback(self.release)
            with self._told_in_one_line():
                self._prepare()
            ending.pop_all()  # from here on, `run` ends it

    def _prepare(self) -> None:
        """Makes all checks, and all parts of the run."""
        config, workdir = self.config, self.workdir
        stored = run.read_config(workdir)
        has_run = stored is not None and (workdir / "checkpoints").is_dir()
        # All processes must agree before one writes: if some resumed and others started afresh,
        # they would hold different weights or wait for each other forever.
        distributed.agree([stored, has_run], f"what --workdir={workdir} holds")
        changed = configs.check_resumable(stored, configs.plain(config)) if stored else {}
        self.mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch(self.mesh, config.batch_size, config.accumulation)
        _prepare_process(config)
        if note := compile_cache.use(config.compile_cache):
            self.console.say(note)
        self.inputs = inputs.make(config, wiring.wire(config)[0])

        # Data before the model, so that errors in them show before anything is compiled.
        self.corpora = run.load_corpora(config, ("train", "val"), workdir)
        training, held_out = (self.corpora[split].fingerprint for split in ("train", "val"))
        self.leaks = run.check_leaks(training, held_out, config.data, self.console)
        # A resumed run takes its tokenizer from the checkpoint: a new one could assign other ids.
        meta = self._existing_meta() if has_run else None
        if meta is not None:
            self.tokenizers = run.read_tokenizers(meta)
        else:
            self.tokenizers = run.make_tokenizers(config, self.corpora["train"])
        self.rows = sharding.local_rows(self.mesh, config.batch_size)
        self.drawn = draw.training_rows(self.corpora["train"], self.inputs, config.data)
        self.total = self._total_steps()
        self.batches = self._batches()
        shapes = batch_shapes(self.inputs, config.batch_size)
        built = run.resolved(config, self.tokenizers)
        built.total_steps = self.total
        self.step = TrainStep(built, self.mesh, shapes)
        self._check_metric()
        # Read before anything is written, so that a wrong folder leaves nothing behind.
        self.initial = initial.read(config, self.step.layout) if meta is None else []
        self.meta = {
            "config": configs.plain(config),
            "tokenizers": {
                tower: checkpoint.to_text(tokenizer.to_bytes())
                for tower, tokenizer in self.tokenizers.items()
            },
            "corpus": {name: corpus.sha256() for name, corpus in self.corpora.items()},
            "preprocessing": self.examples().preprocessing,
            "versions": checkpoint.versions(),
            "init": meta["init"]
            if meta is not None
            else [
                {**one.source(), "sha256": one.sha256, "copied": sorted(one.arrays)}
                for one in self.initial
            ],
        }
        if self.drawn is not None:
            self.meta["draw"] = self.drawn.facts
        if meta is not None and meta["corpus"] != self.meta["corpus"]:
            raise InputError(
                f"the data differ from those --workdir={workdir} was trained on (records, texts "
                "or patients changed); use another --workdir for the new data"
            )
        if meta is not None and meta.get("draw") != self.meta.get("draw"):
            raise InputError(
                f"training draws other examples than those --workdir={workdir} was trained on "
                "(subset, fraction or groups changed); use another --workdir for them"
            )
        # Each process read the data by itself. Different files would silently mix two corpora.
        for name, value in self.meta.items():
            distributed.agree(value, f"{name} of the run")
        self.disk = forecast.disk(self.step, self.meta, workdir)
        distributed.by_first(lambda: forecast.check_disk(self.disk, workdir))
        self._describe()
        distributed.by_first(lambda: sending.start(self._trackers, workdir, self.meta["config"]))
        if self.first:
            self._record_start(changed)
        distributed.await_shared(workdir / "config.json")
        # Opened after the agreement, because it creates folders and deletes incomplete steps.
        self.saved = checkpoint.Checkpoints(
            workdir,
            keep=config.checkpoint.keep,
            fall_back=self._fall_back,
            say=self.console.say,
        )
        self.predict = Predict(self.step.layout, self.mesh)
        self.evaluators = run.make_evaluators(config.evaluators, self.predict, self.examples())
        self.validation = self._validation() if config.validation_loss else None
        self.selection = Selection.of(config.best, None)

    def run(self, finish: Finish | None = None) -> tuple[run.Trained, dict[str, Results]]:
        """Trains, evaluates and saves; returns the trained encoders and their last results.

        Args:
          finish: called with both at the end, while the run directory is still locked; returns the
            pages for trackers, see `trackers.base.Outcome`.
        """
        with contextlib.ExitStack() as ending:
            ending.callback(self.release)
            ending.enter_context(self._told_in_one_line())
            ending.callback(self.saved.close)
            ending.callback(lambda: self.batches.close())
            ending.callback(self.console.stop)
            writer, state, results = self._train(ending)
            step = int(jax.device_get(state["step"]))
            trained = run.Trained(
                self.workdir, self.config, self.meta, self.tokenizers, self.predict, state, step
            )
            self.saved.wait()
            pages = {} if finish is None else finish(trained, results)
            writer.outcome(Outcome(run.scalars(results), pages))
        return trained, results

    def release(self) -> None:
        """Leaves the run directory to others; `run` does so at its end."""
        for tracker in self._trackers:  # those that no writer has closed
            tracker.close("failed")
        if self._lock is not None:
            self._lock.release()

    def _train(
        self, ending: contextlib.ExitStack
    ) -> tuple[metrics.Writer, State, dict[str, Results]]:
        """Takes all steps that are left; what has to be closed is closed by `ending`."""
        state, start = self._restore()
        writer = metrics.Writer(
            self.workdir,
            resume_step=start,
            tensorboard=self.config.tensorboard,
            trackers=self._trackers,
            active=self.first,
        )
        ending.push(lambda kind, *_: writer.close(_status(kind)))
        if start >= self.total or self.selection.stopped:
            more = "config.best.patience" if self.selection.stopped else "config.total_steps"
            if start >= self.total and self.config.epochs:
                more = "config.epochs"
            self.console.say(f"already complete at step {start}; increase {more} to continue")
            # Without the writer: the log of a complete run stays as it is.
            results, _ = self._evaluate(state, start)
        else:
            self._began = True
            traced = Profile(self.workdir, start=start, **self.config.profile)
            ahead, patience = self.config.data.prefetch, self.config.data.stall_seconds
            with (
                distributed.Preemption(self.console.say) as preemption,
                Prefetch(
                    self.batches, self._place, ahead, patience=patience, late=self._say_late
                ) as feed,
                contextlib.closing(traced),
            ):
                state, results = self._loop(state, start, writer, preemption, feed, traced)
        if self.selection.metric:
            self.console.say(f"best checkpoint: {self.selection}")
        return writer, state, results

    def _loop(
        self,
        state: State,
        start: int,
        writer: metrics.Writer,
        preemption: distributed.Preemption,
        feed: Prefetch,
        profile: Profile,
    ) -> tuple[State, dict[str, Results]]:
        config, total = self.config, self.total
        results: dict[str, Results] = {}
        if self._owes_evaluation:
            results, _ = self._evaluate_and_select(state, start, writer)
            if self.selection.stopped:
                return state, results
        self.console.facts("forecast", forecast.facts(self.step, self.disk, total - start))
        clock = self._clock()
        recent: collections.deque[tuple[int, np.ndarray]] = collections.deque()
        restricted = self.step.layout.restricts and self.step.layout.restricts[1]
        self.console.start(start, total)
        for step in range(start + 1, total + 1):
            profile.before(step, state)
            with clock.waiting():
                batch = next(feed)
            recent.append((step, batch.rows))
            # An implicit transfer, such as of a Python number, would cost time at every step.
            with jax.transfer_guard("disallow"):
                state = self.step(state, batch.arrays)
            self.console.advance(step)
            if note := profile.after(step, state):
                self.console.say(note)
            last = step == total
            # The last step is saved and evaluated anyway, so a signal at it changes nothing.
            stopping = preemption.reached() and not last
            evaluating = last or bool(config.eval_every and step % config.eval_every == 0)
            saving = last or stopping or step % config.checkpoint.every == 0
            logging = last or step % config.log_every == 0
            restricting = step == restricted and not last
            # Reading the flag waits for the device, so it is read only where the loop waits anyway,
            # and always before saving: no checkpoint follows a step that was not finite.
            if logging or evaluating or saving or restricting:
                self._check_finite(state, recent)
                recent.clear()
            if restricting:
                self._restrict(state, step, feed)
            if logging:
                self._log(state, step, writer, clock)
            if evaluating and not stopping:
                with clock.excluded():
                    results, is_best = self._evaluate_and_select(state, step, writer)
                last = last or self.selection.stopped
                saving = saving or last or is_best
                if last and not logging:
                    self._log(state, step, writer, clock)
            if saving:
                # Saved after logging and evaluating: a resumed run does not repeat this step, so
                # its lines must be on disk before the checkpoint is.
                with clock.excluded():
                    # Preemption leaves little time, so the resumed run makes up the evaluation.
                    owes = evaluating and stopping
                    self._save(state, step, {**feed.position, "owes_evaluation": owes})
            if stopping:
                self.saved.wait()
                raise PreemptedError(
                    f"stopped: step {step} is saved; start the same command again to resume"
                )
            if last:
                break
        if note := profile.close():
            self.console.say(note)
        return state, results

    def _save(self, state: State, step: int, position: dict[str, Any]) -> None:
        distributed.by_first(self._check_lock)
        if self.selection.metric:
            position = {**position, checkpoint.BEST: self.selection.state()}
        self.saved.save(step, state, position, self.meta)

    def _make_trackers(self) -> None:
        self._trackers = sending.make(self.config.trackers, self.console.say)

    def _take_lock(self) -> None:
        path, what = self.workdir / locks.NAME, f"the run in '{self.workdir}'"
        try:
            self._lock = locks.Lock(path, what, self.console.say)
            files.remove_unfinished(self.workdir)
        except OSError as error:
            raise files.outside(error, f"cannot write to --workdir={self.workdir}") from error

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    @contextlib.contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        """Turns errors of the operating system into `MachineError`, which says what is kept."""
        try:
            yield
        except InputError as error:
            # A file that was there at the start and is gone is no fault of the input. Workers send
            # only the words of an error.
            is_gone = files.cause(error) is not None or "no such file" in str(error)
            if not (self._began and is_gone):
                raise
            text = f"{error}; {self._kept()}; start the same command again when it can be read"
            raise MachineError(text, files.IO) from error
        except (BusyError, MachineError, NonFiniteError, PreemptedError):
            raise
        except Exception as error:
            self._check_lock()  # says more, if the whole folder is gone
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
                raise
            cure = "free some space" if error.errno in files.FULL else "remove the cause"
            raise files.outside(
                error,
                f"training in '{self.workdir}' stopped",
                f"{self._kept()}; {cure} and start the same command again",
                where=self.workdir,
            ) from error

    def _kept(self) -> str:
        step = checkpoint.latest(self.workdir)
        return "no checkpoint was saved" if step is None else f"the last checkpoint is step {step}"

    def _clock(self) -> Clock:
        return Clock(
            self.config.batch_size,
            step_flops=self.step.model_flops(),
            devices=self.mesh.size,
            device_kind=jax.devices()[0].device_kind,
        )

    def _place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        batch_sharding = sharding.batch_sharding(self.mesh)
        return sharding.to_global(batch, batch_sharding, self.rows, self.config.batch_size)

    def _log(self, state: State, step: int, writer: metrics.Writer, clock: Clock) -> None:
        values = metrics.compute(state["metrics"])
        values["learning_rate"] = float(self.step.schedule(step - 1))
        timing = clock.read()
        writer.scalars(step, "train", values)
        writer.timing(step, timing)
        self.console.step(step, values, timing)

    def _evaluate_and_select(
        self, state: State, step: int, writer: metrics.Writer
    ) -> tuple[dict[str, Results], bool]:
        """Evaluates and updates the selection; also whether this is the best evaluation."""
        distributed.by_first(self._check_lock)
        results, values = self._evaluate(state, step, writer)
        self.selection = self.selection.after(step, values)
        self.saved.keep_best(self.selection.step)
        if self.selection.stopped:
            self.console.say(
                f"stops at step {step}: {self.selection.waited} evaluations were no better than "
                f"that of {self.selection}"
            )
        return results, self.selection.step == step

    def _evaluate(
        self, state: State, step: int, writer: metrics.Writer | None = None
    ) -> tuple[dict[str, Results], dict[str, float]]:
        """The results of all evaluators; and all their values, with the losses, by name."""
        try:
            results = run.evaluate_all(self.evaluators, state)
            losses = {} if self.validation is None else self.validation(state)
        except FloatingPointError as error:  # the gradient was finite, the encodings are not
            raise NonFiniteError(
                f"evaluation at step {step}: {error}; the last checkpoint before it is kept"
            ) from error
        values = {**run.scalars(results), **losses}
        if writer is not None:
            writer.scalars(step, "eval", values)
        if self.first:
            content = {
                "step": step,
                "leaks": self.leaks,
                "warnings": self.corpora["val"].warnings,
                "headline": {name: dict(one.headline) for name, one in self.evaluators.items()},
                "results": {name: result.to_dict() for name, result in results.items()},
            }
            if losses:
                content["losses"] = losses
            if self.drawn is not None:
                content["draw"] = self.drawn.facts
            files.write_json(self.workdir / "results" / f"{step:08d}.json", content)
        self.console.results(f"evaluation at step {step} on {self.corpora['val'].name}", results)
        if losses:
            shown = {k: f"{v:.4f}" for k, v in losses.items() if k.endswith("/loss")}
            self.console.facts("losses", shown)
        return results, values

    def _check_finite(
        self, state: State, recent: "collections.deque[tuple[int, np.ndarray]]"
    ) -> None:
        bad = int(jax.device_get(state["nonfinite_step"]))
        if bad < 0:
            return
        rows = distributed.gather_rows(dict(recent).get(bad, np.empty(0, np.int32)))
        ids = [self.corpora["train"].ids[int(row)] for row in rows]
        if self.first:
            files.write_json(self.workdir / "nonfinite.json", {"step": bad, "records": ids})
        raise NonFiniteError(
            f"loss or gradient not finite at step {bad}; records of its batch (all in "
            f"{self.workdir / 'nonfinite.json'}): {', '.join(ids[:8])}"
            f"{', ...' if len(ids) > 8 else ''}; the last checkpoint before it is kept"
        )

    def _existing_meta(self) -> dict[str, Any] | None:
        saved = checkpoint.Checkpoints(self.workdir, read_only=True, fall_back=self._fall_back)
        try:
            return saved.meta() if saved.latest() is not None else None
        finally:
            saved.close()

    def _restrict(self, state: State, step: int, feed: Prefetch | None = None) -> None:
        """Draws only what an objective has kept, once `step` updates are done."""
        restricts = self.step.layout.restricts
        if restricts is None or step < restricts[1]:
            return
        rows, after = self.step.layout.kept(state), restricts[1]
        self.drawn = draw.kept(self.drawn, self.corpora["train"], rows, after)
        if feed is not None:
            feed.close()
        self.batches.close()
        self.batches = self._batches(after)
        self.batches.set_state({"global_next_index": step * self.config.batch_size})
        if feed is not None:
            feed.reopen(self.batches)
        self.console.facts("draw from the training split", self.drawn.facts)

    def _batches(self, start: int = 0) -> BatchIterator:
        return training_batches(
            self.corpora["train"],
            self.inputs,
            self.tokenizers,
            self.config.data,
            seed=streams.host_seed(self.config.seed, "data"),
            batch_size=self.config.batch_size,
            rows=self.rows,
            drawn=None if self.drawn is None else self.drawn.rows,
            groups=None if self.drawn is None else self.drawn.groups,
            start=start,
        )

    def _total_steps(self) -> int:
        """The steps of the run: config.total_steps, or as many as config.epochs take.

        An epoch ends within a batch, and the next one begins in the same. So E epochs of N examples
        are E x N / batch_size steps, rounded up: every example is seen E times, and the first ones
        of the next epoch fill the last batch.
        """
        config = self.config
        if not config.epochs:
            return config.total_steps
        count = len(self.corpora["train"]) if self.drawn is None else len(self.drawn.rows)
        steps = -(-config.epochs * count // config.batch_size)
        self.console.say(
            f"epochs: {config.epochs} of {count} examples in batches of {config.batch_size} take "
            f"{steps} steps; config.total_steps={config.total_steps} does not count"
        )
        return steps

    def _validation(self) -> Validation:
        return Validation(
            self.step.layout,
            self.mesh,
            self.inputs,
            self.corpora["val"],
            self.tokenizers,
            batch_size=self.config.batch_size // self.config.accumulation,
        )

    def _check_metric(self) -> None:
        """Refuses a loss in config.best.metric that the run does not have."""
        metric = self.config.best.metric
        offered = [f"val/{name}" for name in self.step.metric_names]
        if metric.startswith("val/") and metric not in offered:
            raise InputError(build.unknown("value in config.best.metric", metric, offered))

    def _say_late(self, where: str) -> None:
        """Prints on every process, not only the first: only the late one knows the cause."""
        seconds, number = self.config.data.stall_seconds, jax.process_index()
        which = f" for process {number}" if jax.process_count() > 1 else ""
        Console().say(f"no batch{which} in {seconds:g} s: {where}")

    def examples(self) -> Examples:
        """The validation split, prepared for the evaluations during training."""
        return Examples(
            self.config,
            self.corpora["val"],
            self.tokenizers,
            splits=self._corpus,
        )

    def _corpus(self, split: str) -> Corpus:
        """A split: one that training has read, or another one."""
        if split not in self.corpora:
            return run.load_corpus(self.config, split, allow_empty=True)
        return self.corpora[split]

    def _restore(self) -> tuple[State, int]:
        self._owes_evaluation = False
        if self.saved.latest() is None:
            return initial.apply(self.step.init(), self.initial), 0
        state, position = self.saved.restore(self.step.target())
        self._owes_evaluation = position.pop("owes_evaluation", False)
        self.selection = Selection.of(self.config.best, position.pop(checkpoint.BEST, None))
        self.saved.keep_best(self.selection.step)
        start = int(jax.device_get(state["step"]))
        self._restrict(state, start)
        self.batches.set_state(position)
        self.console.say(f"resumed from step {start} in {self.saved.folder}")
        return state, start

    def _describe(self) -> None:
        for corpus in self.corpora.values():
            self.console.facts(corpus.name, describe(corpus))
        if self.drawn is not None:
            self.console.facts("draw from the training split", self.drawn.facts)
        for warning in self.corpora["train"].warnings:
            self.console.say(f"warning: {warning}")
        for tower, tokenizer in self.tokenizers.items():
            self._describe_texts(tower, tokenizer)
        self.console.facts("parameters", self.step.counts())
        self._describe_initial()
        shape = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        self.console.say(f"devices: {self.mesh.size} {jax.devices()[0].device_kind}, mesh {shape}")
        if self.config.accumulation > 1:
            self.console.say(
                f"accumulation={self.config.accumulation}: each pair is contrasted with only "
                f"{self.config.batch_size // self.config.accumulation - 1} negatives per step"
            )

    def _describe_initial(self) -> None:
        """Prints which values came from elsewhere; WORKDIR/init.json lists them all."""
        layout = self.step.layout
        everything = {**initial.by_path(layout.params), **initial.by_path(layout.variables)}
        left = sorted(set(everything).difference(*(one.arrays for one in self.initial)))
        for one in self.initial:
            self.console.say(
                f"initial values: {len(one.arrays)} arrays from {one.folder} (sha256 "
                f"{one.sha256[:16]}); {len(one.unused)} of its arrays are not used"
            )
            for note in one.notes:
                self.console.say(f"initial values: {note}")
        if self.initial:
            self.console.say(
                f"initial values: {len(left)} arrays keep random ones, first {', '.join(left[:4])}"
                f"{', ...' if len(left) > 4 else ''} (all in {self.workdir / 'init.json'})"
            )
            if self.first:
                content = [
                    {**one.source(), "copied": sorted(one.arrays), "unused": one.unused}
                    for one in self.initial
                ]
                files.write_json(self.workdir / "init.json", {"read": content, "random": left})

    def _describe_texts(self, tower: str, tokenizer: Tokenizer) -> None:
        """Prints how a tower cuts texts into tokens."""
        options = self.config.towers[tower]
        own = inputs.make_one(self.config, dict(self.step.layout.wired.own)[tower], tower)
        texts, _ = self.corpora["train"].texts_of(tuple(own.data["sections"]))
        *_, cut = tokenizer.encode_batch(list(texts), options.length)
        self.console.facts(
            "tokenizer" if len(self.tokenizers) == 1 else f"tokenizer of {tower}",
            {
                "pieces": tokenizer.vocab_size,
                "length": options.length,
                "truncated texts": f"{int(cut.sum())} ({float(cut.mean()):.1%})",
            },
        )
        if tokenizer.vocab_size < options.vocab_size and not options.get("tokenizer"):
            self.console.say(
                f"the training text yields {tokenizer.vocab_size} pieces, fewer than "
                f"config.towers.{tower}.vocab_size={options.vocab_size}, so some rows of the "
                "embedding stay unused"
            )

    def _record_start(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        files.write_json(self.workdir / "config.json", self.meta["config"])
        self.corpora["train"].fingerprint.save(self.workdir / run.FINGERPRINT)
        overview = parameter_overview.get_parameter_overview(
            self.step.abstract["params"], include_stats=False
        )
        (self.workdir / "parameters.txt").write_text(overview + "\n", encoding="utf-8")
        for tower, tokenizer in self.tokenizers.items():
            tokenizer.save(self.workdir / run.tokenizer_file(tower, self.tokenizers))
        if changed:
            shown = {k: f"{_shown(a)} -> {_shown(b)}" for k, (a, b) in changed.items()}
            self.console.facts("resumed with changes", shown)
            with (self.workdir / "config_history.jsonl").open("a", encoding="utf-8") as file:
                line = {"changed": changed, "versions": self.meta["versions"]}
                file.write(json.dumps(line) + "\n")


def _status(error: type[BaseException] | None) -> Status:
    """How a run ended, by what was raised."""
    if error is None:
        return "finished"
    return "stopped" if issubclass(error, PreemptedError) else "failed"


def _shown(value: Any) -> str:
    """A value of the config for the console; an empty text is shown as two quotes."""
    return '""' if value == "" else str(value)


def _prepare_process(config: ml_collections.ConfigDict) -> None:
    if config.data.num_workers:
        # Data workers inherit the environment and must not claim the accelerator. This process
        # initialises its own backend first.
        jax.devices()
        os.environ["JAX_PLATFORMS"] = "cpu"
