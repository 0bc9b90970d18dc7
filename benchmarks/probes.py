"""Probes of the questions of zero_shot, each about studies of its own, by ridge regression."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmrl.evaluators import linear, metrics
from mmrl.evaluators.zero_shot import Question
from mmrl.types import InputError

TUNING = 5  # every fifth patient of the training split chooses the strength


def probe(
    train: np.ndarray,
    patients: Sequence[str],
    questions: Mapping[str, Question],
    held_out: np.ndarray,
) -> dict[str, np.ndarray]:
    """Scores of held-out items by ridge regressions on the answers of training items.

    Each question is a regression of its own on +1 and -1 over its own rows. Its strength is the one
    with the greatest AUROC on every fifth patient of the training split, when fitted on the others;
    the final fit uses all of them. Features are standardised with the training split.

    Args:
      train: f[N, F], features of the training split.
      patients: N patient ids.
      questions: about rows of the training split.
      held_out: f[M, F].

    Returns:
      Name of the question -> f64[M].

    Raises:
      InputError: a question without both answers among the patients that choose the strength.
    """
    train, mean, deviation = linear.standardised(train.astype(np.float64))
    held_out = (held_out - mean) / deviation
    tuning = np.unique(np.asarray(patients), return_inverse=True)[1] % TUNING == 0
    scores = {}
    for names in _of_equal_rows(questions):
        rows = questions[names[0]].rows
        answers = np.stack([questions[name].positive for name in names], axis=1)
        chosen = _choose(names, train[rows], answers, tuning[rows])
        needed = sorted(set(chosen))
        signs = np.where(answers, 1.0, -1.0)
        fits = dict(zip(needed, linear.ridge_weights(train[rows], signs, needed), strict=True))
        for column, (name, strength) in enumerate(zip(names, chosen, strict=True)):
            scores[name] = held_out @ fits[strength][:, column]
    return {name: scores[name] for name in questions}


def means(
    train: np.ndarray, questions: Mapping[str, Question], held_out: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of held-out items by the classes' means of training items.

    The score is that of the evaluator zero_shot, with training items in place of prompts: the
    product with the L2-normalised mean of the positives minus that with the mean of the negatives.

    Args:
      train: f[N, D], L2-normalised. held_out: f[M, D].
      questions: about rows of the training split.

    Returns:
      Name of the question -> f64[M].
    """
    scores = {}
    for name, one in questions.items():
        items = train[one.rows].astype(np.float64)
        yes, no = (items[chosen].mean(axis=0) for chosen in (one.positive, ~one.positive))
        scores[name] = held_out @ (yes / np.linalg.norm(yes) - no / np.linalg.norm(no))
    return scores


def areas(questions: Mapping[str, Question], scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The AUROC of each question from scores f[M] of all items."""
    return {
        name: metrics.auroc(scores[name][question.rows], question.positive)
        for name, question in questions.items()
    }


def _of_equal_rows(questions: Mapping[str, Question]) -> list[list[str]]:
    """Names of questions, together where they are about the same rows and share a factorisation."""
    found: dict[bytes, list[str]] = {}
    for name, question in questions.items():
        found.setdefault(question.rows.tobytes(), []).append(name)
    return list(found.values())


def _choose(
    names: Sequence[str], x: np.ndarray, answers: np.ndarray, tuning: np.ndarray
) -> list[float]:
    """The strength of each question; answers bool[n, T], tuning bool[n]."""
    for name, own in zip(names, answers[tuning].T, strict=True):
        if len(np.unique(own)) < 2:
            raise InputError(
                f"probe of {name!r}: {int(own.sum())} of {len(own)} tuning studies are positive; "
                "expected both answers, so more training studies"
            )
    found = []  # strengths T
    signs = np.where(answers[~tuning], 1.0, -1.0)
    for weights in linear.ridge_weights(x[~tuning], signs, linear.RIDGE_STRENGTHS):
        scores = x[tuning] @ weights
        found.append([metrics.auroc(scores[:, t], answers[tuning, t]) for t in range(len(names))])
    return [linear.RIDGE_STRENGTHS[best] for best in np.argmax(found, axis=0)]
