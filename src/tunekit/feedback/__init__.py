"""Feedback from use that becomes training data: a store that an application writes to, and exports that trainers read.

``FeedbackStore("feedback.db")`` is one SQLite file, safe under many processes that write at once;
``FeedbackStore("postgresql://...")`` is the same over PostgreSQL. ``store.record(prompt, answer, thumbs=True)`` adds
a judgement, ``store.preferences()`` and its neighbours give rows, and ``align(data=store)`` trains on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit._lazy import attach

if TYPE_CHECKING:
    from tunekit.feedback.export import Export as Export
    from tunekit.feedback.export import ExportReport as ExportReport
    from tunekit.feedback.importers import Imported as Imported
    from tunekit.feedback.records import Record as Record
    from tunekit.feedback.records import hash_user as hash_user
    from tunekit.feedback.redaction import redact_pii as redact_pii
    from tunekit.feedback.splits import SplitReport as SplitReport
    from tunekit.feedback.store import FeedbackStore as FeedbackStore
    from tunekit.feedback.store import is_feedback as is_feedback
    from tunekit.feedback.store import opened as opened
    from tunekit.feedback.views import FeedbackView as FeedbackView
    from tunekit.feedback.views import Judgements as Judgements

_WHERE = {
    "tunekit.feedback.export": ("Export", "ExportReport"),
    "tunekit.feedback.importers": ("Imported",),
    "tunekit.feedback.records": ("Record", "hash_user"),
    "tunekit.feedback.redaction": ("redact_pii",),
    "tunekit.feedback.splits": ("SplitReport",),
    "tunekit.feedback.store": ("FeedbackStore", "is_feedback", "opened"),
    "tunekit.feedback.views": ("FeedbackView", "Judgements"),
}

__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
