"""What the tasks are measured by. scikit-learn, scipy and seqeval are imported when a number is asked for."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = [
    "HIGHER_IS_BETTER",
    "MOST_CLASSES",
    "classification_report",
    "regression_report",
    "scalars",
    "tagging_report",
]

HIGHER_IS_BETTER = frozenset(
    (
        "accuracy",
        "f1",
        "f1_macro",
        "f1_micro",
        "f1_weighted",
        "precision",
        "recall",
        "precision_micro",
        "recall_micro",
        "pearson",
        "spearman",
    )
)

MOST_CLASSES = 50
"""Largest confusion matrix that is written down whole; of more classes the commonest confusions are."""

_CONFUSIONS = 20


def scalars(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report that are finite."""
    return {
        name: float(value)
        for name, value in report.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def classification_report(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 of classes.

    ``precision``, ``recall`` and ``f1`` are means over the classes that occur in ``true`` or ``predicted`` (macro);
    ``..._micro`` counts all decisions together, which for one class per row equals the accuracy; ``f1_weighted``
    weights classes by their rows. A class that is never predicted has precision 0, one that never occurs recall 0.

    Args:
        true: right class of each row; one that the model does not know counts as never predicted.
        predicted: predicted class of each row.
        labels: the model's classes.

    Returns:
        The numbers, ``n``, ``per_class`` (precision, recall, f1, support by class), and ``confusion``: the matrix with
        rows for true and columns for predicted classes in the order of ``confusion_labels``; above
        :data:`MOST_CLASSES` classes the commonest ``confusions`` as (true, predicted, rows).
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    occurring = set(true) | set(predicted)
    known = [label for label in labels if label in occurring]
    known += sorted(occurring - set(labels))
    report: dict[str, Any] = {"accuracy": float(accuracy_score(true, predicted))}
    for average, ending in (("macro", ""), ("micro", "_micro"), ("weighted", "_weighted")):
        precision, recall, f1, _ = precision_recall_fscore_support(
            true, predicted, labels=known, average=average, zero_division=0
        )
        report |= {f"precision{ending}": float(precision), f"recall{ending}": float(recall), f"f1{ending}": float(f1)}
    each = precision_recall_fscore_support(true, predicted, labels=known, average=None, zero_division=0)
    report["n"] = len(true)
    report["per_class"] = _per_class(known, each)
    if len(known) <= MOST_CLASSES:
        report["confusion_labels"] = known
        report["confusion"] = confusion_matrix(true, predicted, labels=known).tolist()
    else:
        wrong = Counter(pair for pair in zip(true, predicted, strict=True) if pair[0] != pair[1])
        report["confusions"] = [[*pair, count] for pair, count in wrong.most_common(_CONFUSIONS)]
    return report


def tagging_report(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, entities: bool = True
) -> dict[str, Any]:
    """Precision, recall and F1 of entities, and accuracy of tags.

    An entity counts as found if its type and both of its ends are right. Tags are read strictly as IOB2: an entity
    begins with ``B-``; an ``I-`` that continues nothing is no entity. ``precision``, ``recall`` and ``f1`` count all
    entities
    together (micro); ``f1_macro`` is the mean over the types. As seqeval's ``mode="strict", scheme=IOB2``.

    Args:
        true: tags of each sentence.
        predicted: as many.
        entities: False for tags that are not BIO, such as parts of speech: the numbers are those of single tags.
    """
    if not entities:
        flat_true = [tag for tags in true for tag in tags]
        flat_predicted = [tag for tags in predicted for tag in tags]
        report = classification_report(flat_true, flat_predicted, sorted(set(flat_true)))
        report["f1_macro"] = report["f1"]
        return report
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    gold, found = [list(tags) for tags in true], [list(tags) for tags in predicted]
    report = {"accuracy": float(accuracy_score(gold, found))}
    kinds = sorted({tag[2:] for tags in (*gold, *found) for tag in tags if tag != "O"})
    if not any(tag.startswith("B-") for tags in (*gold, *found) for tag in tags):
        # Nothing to find and nothing found: seqeval has no numbers for that.
        return {**report, "precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0, "n": 0, "per_class": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = precision_recall_fscore_support(
            gold, found, average="micro", scheme=IOB2, zero_division=0
        )
        macro = precision_recall_fscore_support(gold, found, average="macro", scheme=IOB2, zero_division=0)[2]
        each = precision_recall_fscore_support(gold, found, average=None, scheme=IOB2, zero_division=0)
    report |= {"precision": float(precision), "recall": float(recall), "f1": float(f1), "f1_macro": float(macro)}
    report["n"] = int(support)
    begun = [kind for kind in kinds if any(f"B-{kind}" in tags for tags in (*gold, *found))]
    report["per_class"] = _per_class(begun, each)
    return report


def regression_report(true: Sequence[float], predicted: Sequence[float]) -> dict[str, Any]:
    """``mse``, ``rmse``, ``mae`` in the units of the scores, ``pearson`` and ``spearman`` correlation.

    The correlations are left out where they are not defined: fewer than two rows, or no variation on one side.
    """
    from scipy.stats import pearsonr, spearmanr

    errors = [left - right for left, right in zip(predicted, true, strict=True)]
    mse = math.fsum(error * error for error in errors) / len(errors)
    report: dict[str, Any] = {
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": math.fsum(abs(error) for error in errors) / len(errors),
        "n": len(errors),
    }
    if len(set(true)) > 1 and len(set(predicted)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {
                "pearson": float(pearsonr(true, predicted).statistic),
                "spearman": float(spearmanr(true, predicted).statistic),
            }
        report |= {name: value for name, value in values.items() if math.isfinite(value)}
    return report


def _per_class(names: Sequence[str], numbers: Any) -> dict[str, dict[str, float]]:
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in zip(names, *numbers, strict=True)
    }
