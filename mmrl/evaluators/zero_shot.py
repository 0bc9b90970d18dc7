"""Zero-shot classification of images by their similarity to text prompts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmrl import build
from mmrl.data.labels import Policy
from mmrl.evaluators import metrics, statistics
from mmrl.evaluators.base import Estimate, Evaluator, HeldOut, Predict, Results
from mmrl.types import InputError, Record

PROTOCOL = "zero_shot@1"
TASK_SETS = ("findings", "laterality")

# Without articles, so that they fit countable and uncountable findings.
STATED = (
    "{finding}.",
    "{finding} is present.",
    "{finding} is seen.",
    "there is {finding}.",
    "findings consistent with {finding}.",
)
DENIED = (
    "no {finding}.",
    "there is no {finding}.",
    "no evidence of {finding}.",
    "no {finding} is seen.",
    "no signs of {finding}.",
)
SIDED = (
    "{side} {finding}.",
    "{side} {finding} is present.",
    "there is {side} {finding}.",
    "{finding} on the {side}.",
    "there is {finding} on the {side}.",
    "{side}-sided {finding}.",
)
_SIDES = ("left", "right")
OPEN = Policy()  # uncertain and unstated labels leave the finding unknown

# (finding name, side); side "" means any side.
Selector = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Task:
    """One binary classification task, given by prompts.

    Attributes:
      positive, negative: prompts of the two classes.
      present: a study with this finding is positive.
      absent: a study with this finding is negative; None: one without `present` is. Studies with
        both or neither are excluded, and so are studies for which this is unknown.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    present: Selector
    absent: Selector | None = None


class Facts(NamedTuple):
    """The known findings of one study.

    Attributes:
      sides: finding present -> its sides; "" stands for a side that is not stated.
      absent: findings known to be absent; None: all that are not present.
    """

    sides: Mapping[str, frozenset[str]]
    absent: frozenset[str] | None

    def has(self, selector: Selector) -> bool | None:
        """Whether the study has the finding on that side; None if unknown."""
        name, side = selector
        if name not in self.sides:
            return False if self.absent is None or name in self.absent else None
        if not side or side in self.sides[name]:
            return True
        return None if "" in self.sides[name] else False

    def answer(self, task: Task) -> bool | None:
        """Whether the study is positive for the task; None if it is excluded."""
        present = self.has(task.present)
        if task.absent is None:
            return present
        absent = self.has(task.absent)
        return None if present is None or absent is None or present == absent else present


@dataclasses.dataclass(frozen=True)
class Question:
    """A task with its studies: rows i64[n] in the held-out data, classes positive bool[n]."""

    task: Task
    rows: np.ndarray
    positive: np.ndarray


class Asked(NamedTuple):
    """The questions about some held-out studies.

    Attributes:
      sets: task set -> task name -> question.
      excluded: task set -> name of a task that is not asked -> the reason.
    """

    sets: dict[str, dict[str, Question]]
    excluded: dict[str, dict[str, str]]


def read_facts(records: Sequence[Record], policy: Policy = OPEN) -> list[Facts]:
    """The ground truth of each record: findings if the corpus has any, else labels.

    Findings are assumed to be complete; "bilateral" means both sides. Labels have no side. A
    finding is unknown if `policy` masks its label or maps it to neither 1 nor 0.

    Returns:
      One entry per record; empty if no record has a finding or a label of 1 or 0.
    """
    if any(record.findings for record in records):
        facts = []
        for record in records:
            sides: dict[str, frozenset[str]] = {}
            for finding in record.findings:
                on = _SIDES if finding.side == "bilateral" else (finding.side,)
                sides[finding.name] = sides.get(finding.name, frozenset()) | set(on)
            facts.append(Facts(sides, None))
        return facts
    facts = []
    for record in records:
        stated = policy.of(record)
        present = {name: frozenset({""}) for name, label in stated.items() if label == 1}
        facts.append(Facts(present, frozenset(name for name, v in stated.items() if v == 0)))
    return facts if any(fact.sides or fact.absent for fact in facts) else []


def ask(
    data: HeldOut,
    *,
    tasks: str | Sequence[str] | Mapping[str, Any] = TASK_SETS,
    min_positives: int = 5,
    policy: Policy = OPEN,
) -> Asked:
    """Applies tasks to the ground truth of the studies.

    Args:
      tasks, min_positives: as of `ZeroShot`.
      policy: of labels, see `read_facts`.

    Raises:
      InputError: records lack findings and labels, no task is left, or a task is invalid.
    """
    facts = read_facts([data.record(index) for index in range(len(data))], policy)
    if not facts:
        raise InputError(
            f"no record of {data.name} has findings or labels ({len(data)} examples); "
            "zero_shot needs them as ground truth"
        )
    names = sorted({name for fact in facts for name in {*fact.sides, *(fact.absent or ())}})
    asked = Asked({}, {})
    for set_name, of_set in _chosen(tasks, names).items():
        asked.sets[set_name], asked.excluded[set_name] = {}, {}
        for name, task in of_set.items():
            question = _question(task, facts)
            yes, no = int(question.positive.sum()), int((~question.positive).sum())
            if set_name in TASK_SETS and name.lower().startswith("no "):
                asked.excluded[set_name][name] = "is itself a denial"  # such as "No Finding"
            elif min(yes, no) < min_positives:
                asked.excluded[set_name][name] = (
                    f"{yes} positive and {no} negative studies, fewer than {min_positives}"
                )
            else:
                asked.sets[set_name][name] = question
    if not any(asked.sets.values()):
        raise InputError(
            f"no task has {min_positives} positive and {min_positives} negative studies in "
            f"{data.name} ({len(data)} examples); lower min_positives or choose other tasks"
        )
    return asked


def _question(task: Task, facts: Sequence[Facts]) -> Question:
    """The studies for which the answer to a task is known, with the answers."""
    answers = [fact.answer(task) for fact in facts]
    rows = np.array([i for i, known in enumerate(answers) if known is not None], np.int64)
    return Question(task, rows, np.array([answers[row] for row in rows], bool))


def finding_task(name: str) -> Task:
    """Task: is the finding present? Prompts from `STATED` and `DENIED`."""
    return Task(_worded(STATED, name), _worded(DENIED, name), (name, ""))


def laterality_task(name: str) -> Task:
    """Task: is the finding left or right? Prompts from `SIDED`; studies with one side only."""
    left, right = (_worded(SIDED, name, side) for side in _SIDES)
    return Task(left, right, (name, "left"), (name, "right"))


def _worded(templates: Iterable[str], name: str, side: str = "") -> tuple[str, ...]:
    """Fills and capitalises templates; name "Pleural_Effusion" becomes "pleural effusion"."""
    words = name.replace("_", " ").split()
    finding = " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)
    filled = (template.format(finding=finding, side=side) for template in templates)
    return tuple(text[0].upper() + text[1:] for text in filled)


def _chosen(tasks: Any, names: Sequence[str]) -> dict[str, dict[str, Task]]:
    """Task set -> task name -> task, from the option `tasks` and the finding names.

    Raises:
      InputError: a set, key or finding is unknown, or an entry has the wrong form.
    """
    if hasattr(tasks, "items"):  # a ConfigDict is no `Mapping`
        return {"tasks": {name: _parsed(name, given, names) for name, given in tasks.items()}}
    sets = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    chosen: dict[str, dict[str, Task]] = {}
    for name in sets:
        if name not in TASK_SETS:
            raise InputError(build.unknown("task set", name, TASK_SETS))
        make = finding_task if name == "findings" else laterality_task
        chosen[name] = {finding: make(finding) for finding in names}
    return chosen


def _parsed(name: str, given: Any, names: Sequence[str]) -> Task:
    where = f"tasks.{name}"
    fields = dict(given.items()) if hasattr(given, "items") else {}
    allowed = [field.name for field in dataclasses.fields(Task)]
    for key in fields:
        if key not in allowed:
            raise InputError(build.unknown(f"key in {where}", key, allowed))
    missing = [key for key in allowed[:3] if key not in fields]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; expected {', '.join(allowed)}")
    for key in ("positive", "negative"):
        prompts = fields[key]
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise InputError(f"{where}.{key} is {prompts!r}, expected a sequence of prompts")
        fields[key] = tuple(prompts)
    for key in ("present", "absent"):
        if fields.get(key) is None:
            continue
        selector = fields[key]
        if isinstance(selector, str) or len(selector) != 2 or selector[1] not in ("", *_SIDES):
            raise InputError(
                f"{where}.{key} is {selector!r}, expected (finding, side) with side left, right "
                'or ""'
            )
        if selector[0] not in names:
            raise InputError(build.unknown(f"finding in {where}.{key}", selector[0], names))
        fields[key] = (selector[0], selector[1])
    return Task(**fields)


class ZeroShot(Evaluator):
    """Classifies findings and their sides from text prompts, without training on labels.

    An image's score is its cosine with the ensemble of the positive prompts minus its cosine with
    the ensemble of the negative ones. An ensemble is the L2-normalised mean of L2-normalised
    prompt embeddings (BioViL, Boecking et al. 2022). Each task gives an AUROC, with ties counted
    half; each set gives their unweighted mean (macro AUROC). Intervals (95 %) are from a bootstrap
    over patients; draws without a positive or a negative are skipped and counted. As a baseline,
    every image is replaced by one of another patient. Chance is 0.5. Protocol "zero_shot@1";
    values "{set}/auroc", "{set}/auroc_images_permuted", then "{set}/{task}/..." for each task.

    Sets: "findings" has one task per finding, whether it is present; "laterality" has one task per
    finding, left or right, over studies with the finding on exactly one side.

    Args:
      predict, data: as for every evaluator.
      tasks: names of sets (findings, laterality), or own tasks: name -> {"positive": prompts,
        "negative": prompts, "present": (finding, side or "")} and, optionally, "absent" in the
        same form; see `Task`.
      min_positives: tasks with fewer positives or negatives are excluded and listed.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Raises:
      InputError: records lack findings and labels, no task is left, or an option is invalid.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    prompted: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        tasks: str | Sequence[str] | Mapping[str, Any] = TASK_SETS,
        min_positives: int = 5,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, min_positives=min_positives, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        super().__init__(predict, data, reads=reads)
        self.min_positives, self.permutations = min_positives, permutations
        self.bootstrap, self.seed = bootstrap, seed
        self.policy = getattr(data, "label_policy", OPEN)
        self.sets, self.tasks_excluded = ask(
            data, tasks=tasks, min_positives=min_positives, policy=self.policy
        )

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data = self.data
        images, prompt = self._encoded(state)
        rng = statistics.generator(self.seed, "images")
        permutations = [
            statistics.permutation_between_patients(data.patients, rng)
            for _ in range(self.permutations)
        ]
        values: dict[str, Estimate] = {}
        details: dict[str, Any] = {}
        for set_name, questions in self.sets.items():
            if questions:
                rows, details[set_name] = self._set(
                    questions, images, prompt, np.stack(permutations)
                )
                values |= {f"{set_name}/{name}": row for name, row in rows.items()}
        return Results(
            protocol=PROTOCOL,
            # The macro AUROCs of all sets come before those of tasks.
            values=dict(sorted(values.items(), key=lambda item: item[0].count("/") > 1)),
            n=len(data),
            data={"name": data.name, "sha256": data.sha256},
            preprocessing=data.preprocessing,
            details={
                "tasks": details,
                "tasks_excluded": self.tasks_excluded,
                "constant_predictor": {"auroc": 0.5},
                "ties": f"half, within {statistics.TIE:g}",
                "options": {
                    "min_positives": self.min_positives,
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                }
                | ({} if self.policy == OPEN else {"label_policy": self.policy.to_dict()}),
            },
        )

    def ranked(self, state: Any) -> dict[str, dict[str, metrics.Ranked]]:
        """Set -> task -> the scores f32[1, n] from which `run` computes its AUROCs.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        images, prompt = self._encoded(state)
        return {
            set_name: {
                name: metrics.Ranked(
                    asked.rows,
                    _scores(images[asked.rows], *_prompted(asked.task, prompt))[None],
                    asked.positive,
                )
                for name, asked in of_set.items()
            }
            for set_name, of_set in self.sets.items()
        }

    def _encoded(self, state: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images f32[N, D] and prompt -> f32[D], all L2-normalised."""
        data = self.data
        of_image, of_text = self.names["image"], self.names["text"]
        encoded = self.predict.encode(state, data, [of_image])
        images = statistics.require_present(encoded, of_image, data)
        images = statistics.unit_rows(images, of_image, data.ids)
        prompts = self._prompts()
        texts = self.predict.encode(state, data.with_texts(prompts), [of_text])[of_text]
        embedded = statistics.unit_rows(texts, of_text, prompts)
        return images, dict(zip(prompts, embedded, strict=True))

    def _prompts(self) -> list[str]:
        """Every prompt once."""
        tasks = [question.task for of_set in self.sets.values() for question in of_set.values()]
        return list(dict.fromkeys(text for task in tasks for text in task.positive + task.negative))

    def _set(
        self,
        questions: Mapping[str, Question],
        images: np.ndarray,
        prompt: Mapping[str, np.ndarray],
        foreign: np.ndarray,
    ) -> tuple[dict[str, Estimate], dict[str, Any]]:
        """Values and details of one set; `foreign` i64[P, N] are permutations of the images."""
        own: list[metrics.Ranked] = []
        blind: list[metrics.Ranked] = []
        details: dict[str, Any] = {}
        for name, asked in questions.items():
            yes, no = _prompted(asked.task, prompt)
            scores = _scores(images, yes, no)
            own.append(metrics.Ranked(asked.rows, scores[None, asked.rows], asked.positive))
            permuted = scores[foreign[:, asked.rows]]
            blind.append(metrics.Ranked(asked.rows, permuted, asked.positive))
            details[name] = self._task_details(asked, images[asked.rows], yes, no)
        values, skipped = self._estimates("auroc", questions, own)
        values |= self._estimates("auroc_images_permuted", questions, blind)[0]
        return values, {"skipped_draws": skipped, "by_task": details}

    def _estimates(
        self, row: str, names: Iterable[str], tasks: Sequence[metrics.Ranked]
    ) -> tuple[dict[str, Estimate], dict[str, int]]:
        """The macro AUROC and that of each task, and the number of skipped draws of each."""
        each, macro = metrics.intervals(
            tasks, self.data.patients, samples=self.bootstrap, seed=self.seed, tie=statistics.TIE
        )
        of_tasks = [metrics.mean_auroc(task, tie=statistics.TIE) for task in tasks]
        counts = [len(task.rows) for task in tasks]
        studies = len(np.unique(np.concatenate([task.rows for task in tasks])))
        rows = zip(
            (row, *(f"{name}/{row}" for name in names)),
            (float(np.mean(of_tasks)), *of_tasks),
            (macro, *each),
            (studies, *counts),
            strict=True,
        )
        values, skipped = {}, {}
        for name, value, interval, n in rows:
            values[name] = Estimate(value, interval.low, interval.high, n, chance=0.5)
            skipped[name] = interval.skipped
        return values, skipped

    def _task_details(
        self, asked: Question, images: np.ndarray, yes: np.ndarray, no: np.ndarray
    ) -> dict[str, Any]:
        """Counts and prompts of a task, and the range of its AUROC over single prompts."""
        to_yes, to_no = images @ yes.T, images @ no.T  # n prompts
        single = [
            metrics.auroc(to_yes[:, p] - to_no[:, q], asked.positive, tie=statistics.TIE)
            for p in range(len(yes))
            for q in range(len(no))
        ]
        owners = np.asarray(self.data.patients)[asked.rows]
        return {
            "n": len(asked.rows),
            "positives": int(asked.positive.sum()),
            "prevalence": float(asked.positive.mean()),
            "patients": len(np.unique(owners)),
            "left_out": len(self.data) - len(asked.rows),
            "positive_prompts": list(asked.task.positive),
            "negative_prompts": list(asked.task.negative),
            # AUROCs with one positive and one negative prompt, over all such pairs.
            "single_prompts": {"min": min(single), "max": max(single), "pairs": len(single)},
        }


def _ensemble(prompts: np.ndarray) -> np.ndarray:
    """f32[P, D], L2-normalised -> the L2-normalised mean f32[D]."""
    return statistics.unit_rows(prompts.mean(axis=0)[None], "prompt ensemble", ["of a task"])[0]


def _prompted(task: Task, prompt: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings f32[P, D] of the positive and of the negative prompts."""
    yes, no = ([prompt[text] for text in texts] for texts in (task.positive, task.negative))
    return np.stack(yes), np.stack(no)


def _scores(images: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """f32[N]: cosine of each image with the positive minus that with the negative ensemble."""
    return images @ _ensemble(yes) - images @ _ensemble(no)
