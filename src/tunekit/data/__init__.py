"""Canonical rows out of files, lists and data sets.

``load_dataset(ref, accepts=("prompt_completion",))`` opens a data set, ``Dataset.rows()`` gives its checked rows. The
row shapes are in :mod:`tunekit.data.schemas`, the known formats in :mod:`tunekit.data.formats`. Text fields are strings
or message lists; :func:`as_messages`, :func:`to_text` and :func:`plain_pair` turn one into the other.

Formats that name a question and an answer (Alpaca, question/answer, ShareGPT, OpenAI ...) give message lists, which a
trainer renders through the model's chat template, or through :func:`plain_pair` if the model has none. Columns called
``prompt``, ``completion``, ``chosen`` and ``rejected`` are kept as they are: strings there become a user and an
assistant turn where the tokenizer has a chat template, and are continued as raw text where it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit._lazy import attach

if TYPE_CHECKING:
    from tunekit.data.contamination import Contamination as Contamination
    from tunekit.data.contamination import measure_contamination as measure_contamination
    from tunekit.data.dataset import Dataset as Dataset
    from tunekit.data.formats import FORMAT_NAMES as FORMAT_NAMES
    from tunekit.data.formats import Format as Format
    from tunekit.data.hub import looks_like_hub_id as looks_like_hub_id
    from tunekit.data.labels import label_counts as label_counts
    from tunekit.data.labels import label_names as label_names
    from tunekit.data.load import canonical_dataset as canonical_dataset
    from tunekit.data.load import load_dataset as load_dataset
    from tunekit.data.messages import as_messages as as_messages
    from tunekit.data.messages import is_messages as is_messages
    from tunekit.data.messages import plain_pair as plain_pair
    from tunekit.data.messages import to_text as to_text
    from tunekit.data.mixture import mix as mix
    from tunekit.data.schemas import CONVERSIONS as CONVERSIONS
    from tunekit.data.schemas import SCHEMAS as SCHEMAS
    from tunekit.data.select import shuffled as shuffled
    from tunekit.data.select import split as split

_WHERE = {
    "tunekit.data.contamination": ("Contamination", "measure_contamination"),
    "tunekit.data.dataset": ("Dataset",),
    "tunekit.data.formats": ("FORMAT_NAMES", "Format"),
    "tunekit.data.labels": ("label_counts", "label_names"),
    "tunekit.data.hub": ("looks_like_hub_id",),
    "tunekit.data.load": ("canonical_dataset", "load_dataset"),
    "tunekit.data.mixture": ("mix",),
    "tunekit.data.messages": ("as_messages", "is_messages", "plain_pair", "to_text"),
    "tunekit.data.schemas": ("CONVERSIONS", "SCHEMAS"),
    "tunekit.data.select": ("shuffled", "split"),
}

__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
