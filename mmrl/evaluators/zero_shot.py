"""Zero-shot classification of images by their similarity to text prompts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmrl import build
from mmrl.data.labels import Policy
from mmrl.evaluators import metrics, pictures, prompt_sets, scoring, statistics
from mmrl.evaluators.base import (
    Estimate,
    Evaluator,
    Figure,
    HeldOut,
    Predict,
    Results,
    identity,
)
from mmrl.evaluators.prompt_sets import DENIED, SIDED, STATED, worded
from mmrl.evaluators.scoring import UNKNOWN, Answers
from mmrl.evaluators.subgroups import subgroups
from mmrl.evaluators.truth import ENGLISH, OPEN, SIDES, Facts, Selector, know
from mmrl.types import InputError

PROTOCOL = "zero_shot@1"
TASK_SETS = ("findings", "laterality")


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
      left_out: reason -> number of studies that no question is about.
    """

    sets: dict[str, dict[str, Question]]
    excluded: dict[str, dict[str, str]]
    left_out: dict[str, int]


def ask(
    data: HeldOut,
    *,
    tasks: str | Sequence[str] | Mapping[str, Any] = TASK_SETS,
    min_positives: int = 5,
    policy: Policy = OPEN,
    language: str = ENGLISH,
) -> Asked:
    """Applies tasks to the ground truth of the studies.

    Args:
      tasks, min_positives, language: as of `ZeroShot`.
      policy: of labels, see `truth.read_facts`.

    Raises:
      InputError: records lack findings and labels, no task is left, or a task is invalid.
    """
    known = know(data, purpose="zero_shot", policy=policy, language=language)
    names = known.names
    asked = Asked({}, {}, known.excluded)
    for set_name, of_set in _chosen(tasks, names, language).items():
        asked.sets[set_name], asked.excluded[set_name] = {}, {}
        for name, task in of_set.items():
            question = _question(task, known.facts)
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
    answers = [fact.answer(task.present, task.absent) for fact in facts]
    rows = np.array([i for i, known in enumerate(answers) if known is not None], np.int64)
    return Question(task, rows, np.array([answers[row] for row in rows], bool))


def finding_task(name: str) -> Task:
    """Task: is the finding present? Prompts from `STATED` and `DENIED`."""
    return Task(worded(STATED, name), worded(DENIED, name), (name, ""))


def laterality_task(name: str) -> Task:
    """Task: is the finding left or right? Prompts from `SIDED`; studies with one side only."""
    left, right = (worded(SIDED, name, side) for side in SIDES)
    return Task(left, right, (name, "left"), (name, "right"))


def _chosen(tasks: Any, names: Sequence[str], language: str) -> dict[str, dict[str, Task]]:
    """Task set -> task name -> task, from the option `tasks` and the finding names.

    Raises:
      InputError: a set, key or finding is unknown, or an entry has the wrong form.
    """
    if hasattr(tasks, "items"):  # a ConfigDict is no `Mapping`
        return {"tasks": {name: _parsed(name, given, names) for name, given in tasks.items()}}
    sets = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    chosen: dict[str, dict[str, Task]] = {}
    for name in sets:
        if name in TASK_SETS:
            if language != ENGLISH:
                raise InputError(
                    f"the prompts of {name} are in {ENGLISH}, language is {language}; expected own "
                    "tasks"
                )
            make = finding_task if name == "findings" else laterality_task
            chosen[name] = {finding: make(finding) for finding in names}
            continue
        published = (*TASK_SETS, *prompt_sets.names("tasks"))
        if name not in published and not name.endswith(".json"):
            raise InputError(build.unknown("task set", name, published))
        given = prompt_sets.load(name, "tasks", where="task set")
        if given.language != language:
            raise InputError(
                f"the prompts of {name} are in {given.language}, language is {language}; "
                "expected the same"
            )
        chosen[name] = {task: _parsed(task, one, names) for task, one in given.tasks.items()}
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
        if isinstance(selector, str) or len(selector) != 2 or selector[1] not in ("", *SIDES):
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

    Beside them stand, for sets and tasks, the area under the precision-recall curve (auprc), and
    f1, accuracy and balanced_accuracy if `threshold_from` names a split to choose thresholds on;
    for sets also the rows of a constant predictor and of images of other patients (permuted
    once), and "subgroup/{subgroup}/{set}/...", see `subgroups`.

    Sets: "findings" has one task per finding, whether it is present; "laterality" has one task per
    finding, left or right, over studies with the finding on exactly one side; published ones are
    in the folder `prompts`, see `prompt_sets`.

    Args:
      predict, data: as for every evaluator.
      tasks: names of sets (findings, laterality, rsna_pneumonia@1, or FILE.json, see
        `prompt_sets`), or own tasks: name -> {"positive": prompts,
        "negative": prompts, "present": (finding, side or "")} and, optionally, "absent" in the
        same form; see `Task`.
      min_positives: tasks with fewer positives or negatives are excluded and listed.
      threshold_from: split on which the threshold of each task is chosen, the one with the best F1,
        such as val; "": no measure that needs a threshold. There is none, and the results say so,
        when that split itself is evaluated.
      language: language of the prompts, ISO 639-1; studies in another one are excluded and counted.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Raises:
      InputError: records lack findings and labels, no task is left, or an option is invalid.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    prompted: ClassVar[tuple[str, ...]] = ("text",)
    headline: ClassVar[Mapping[str, str]] = {
        "findings/auroc": "prompts tell whether a finding is present, mean AUROC over findings",
        "laterality/auroc": "prompts tell left from right, mean AUROC over findings",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        tasks: str | Sequence[str] | Mapping[str, Any] = TASK_SETS,
        min_positives: int = 5,
        threshold_from: str = "",
        language: str = ENGLISH,
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
        self.sets, self.tasks_excluded, self.left_out = ask(
            data, tasks=tasks, min_positives=min_positives, policy=self.policy, language=language
        )
        self.language, self.groups = language, subgroups(data)
        self.chosen_on = data.split(threshold_from) if threshold_from else None
        self.no_thresholds = "" if threshold_from else "threshold_from is not set"
        if self.chosen_on is not None and self.chosen_on.name == data.name:
            self.no_thresholds = f"{data.name} is evaluated itself"
        self.to_choose = Asked({}, {}, {})
        if self.chosen_on is not None and not self.no_thresholds:
            self.to_choose = ask(
                self.chosen_on, tasks=tasks, min_positives=1, policy=self.policy, language=language
            )
            for set_name, of_set in self.sets.items():
                for name in of_set:
                    if name not in self.to_choose.sets[set_name]:
                        raise InputError(
                            f"no threshold for {set_name}/{name}: {self.chosen_on.name} lacks "
                            "positive or negative studies; choose other tasks or threshold_from"
                        )

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data = self.data
        images, prompt = self._encoded(state, data)
        rng = statistics.generator(self.seed, "images")
        orders = statistics.permutations_between_patients(data.patients, rng, self.permutations)
        permutations = np.array(orders, np.int64).reshape(-1, len(data))
        thresholds = self._thresholds(state)
        values: dict[str, Estimate] = {}
        beside: dict[str, Estimate] = {}
        details: dict[str, Any] = {}
        answers: dict[str, Answers] = {}
        for set_name, questions in self.sets.items():
            if questions:
                rows, details[set_name] = self._set(questions, images, prompt, permutations)
                values |= {f"{set_name}/{name}": row for name, row in rows.items()}
                more, details[set_name]["beside"], answers[set_name] = self._beside(
                    set_name, images, prompt, permutations, thresholds.get(set_name)
                )
                beside |= more
        return Results(
            protocol=PROTOCOL,
            # The macro AUROCs of all sets come before other measures, and those before tasks.
            values=dict(
                sorted(
                    (values | beside).items(),
                    key=lambda item: (item[0].count("/") > 1, item[0] in beside),
                )
            ),
            n=len(data) - sum(self.left_out.values()),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=self.left_out,
            answers=answers,
            details={
                "tasks": details,
                "tasks_excluded": self.tasks_excluded,
                "thresholds": self._thresholds_told(thresholds),
                "constant_predictor": {"auroc": 0.5},
                "ties": f"half, within {statistics.TIE:g}",
                "options": {
                    "min_positives": self.min_positives,
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                    "language": self.language,
                }
                | ({} if self.policy == OPEN else {"label_policy": self.policy.to_dict()}),
            },
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """How the answers lie to the truth."""
        return pictures.of_answers(results.answers)

    def ranked(self, state: Any) -> dict[str, dict[str, metrics.Ranked]]:
        """Set -> task -> the scores f32[1, n] from which `run` computes its AUROCs.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        images, prompt = self._encoded(state, self.data)
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

    def _encoded(self, state: Any, data: HeldOut) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images f32[N, D] and prompt -> f32[D], all L2-normalised."""
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
        if len(foreign):
            values |= self._estimates("auroc_images_permuted", questions, blind)[0]
        return values, {"skipped_draws": skipped, "by_task": details}

    def _thresholds(self, state: Any) -> dict[str, dict[str, float]]:
        """Set -> task -> the threshold with the best F1 on the split to choose on; else empty."""
        if self.chosen_on is None or self.no_thresholds:
            return {}
        images, prompt = self._encoded(state, self.chosen_on)
        found: dict[str, dict[str, float]] = {}
        for set_name, questions in self.sets.items():
            found[set_name] = {}
            for name in questions:
                asked = self.to_choose.sets[set_name][name]
                scores = _scores(images[asked.rows], *_prompted(asked.task, prompt))
                found[set_name][name] = scoring.best_f1_threshold(
                    np.asarray(scores, np.float64), asked.positive
                )
        return found

    def _thresholds_told(self, thresholds: Mapping[str, Any]) -> dict[str, Any]:
        """The thresholds with the split they are chosen on, or why there are none."""
        if self.chosen_on is None or self.no_thresholds:
            return {"none": self.no_thresholds}
        excluded = self.to_choose.left_out
        return {"chosen_on": self.chosen_on.name, "excluded": excluded, "values": thresholds}

    def _beside(
        self,
        set_name: str,
        images: np.ndarray,
        prompt: Mapping[str, np.ndarray],
        foreign: np.ndarray,
        thresholds: Mapping[str, float] | None,
    ) -> tuple[dict[str, Estimate], dict[str, Any], Answers]:
        """Measures of a set beside the AUROC, by full name, their details, and the answers."""
        questions = self.sets[set_name]
        truth = np.full((len(images), len(questions)), UNKNOWN, np.int8)
        scores = np.empty(truth.shape, np.float64)
        for place, asked in enumerate(questions.values()):
            truth[asked.rows, place] = asked.positive
            scores[:, place] = _scores(images, *_prompted(asked.task, prompt))
        scores = statistics.snapped(scores)
        some = np.flatnonzero((truth != UNKNOWN).any(axis=1))
        answers = Answers(
            "labels",
            scores[some],
            truth[some],
            np.asarray(self.data.patients)[some],
            tuple(questions),
            np.array([thresholds[name] for name in questions]) if thresholds else None,
        )
        values, details = scoring.report(
            answers,
            # One permutation: five would take most of the time of an evaluation.
            rows={"images_permuted": [scores[order[some]] for order in foreign[:1]]},
            subgroups={name: inside[some] for name, inside in self.groups.items()},
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        named = {
            _full_name(set_name, name): value
            for name, value in values.items()
            if name not in ("macro_auroc", "macro_auroc_images_permuted")
            and not (name.startswith("label/") and name.endswith("/auroc"))
        }
        return named, details, answers

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
            values[name] = Estimate(
                value, interval.low, interval.high, n, chance=0.5, draws=interval.draws
            )
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


def _full_name(set_name: str, name: str) -> str:
    """The name of a value of `scoring.report` among those of all sets."""
    if name.startswith("subgroup/"):
        of_group, _, measure = name.rpartition("/")
        return f"{of_group}/{set_name}/{measure.removeprefix('macro_')}"
    if name.startswith("label/"):
        return f"{set_name}/{name.removeprefix('label/')}"
    return f"{set_name}/{name.removeprefix('macro_')}"


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
