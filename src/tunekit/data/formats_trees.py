"""Nested message trees, as OpenAssistant publishes them: what they hold as rankings, thumbs and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.data.formats_base import NO, YES, Format, Row
from tunekit.data.formats_judged import votes
from tunekit.data.messages import normalize_messages
from tunekit.data.rows import RowProblem, kind_of

__all__ = ["TREE_FORMATS", "TreeMessage", "tree_messages"]

_DEPTH = 500
"""Messages on the longest path that is followed; real conversations have some dozens."""

Path = list[Row]


def _root(row: Row) -> Any:
    """The first message: the row, or what the row calls its prompt."""
    return row["prompt"] if isinstance(row.get("prompt"), Mapping) and "replies" not in row else row


def _usable(node: Mapping[str, Any]) -> bool:
    return node.get("deleted") is not True and node.get("review_result") is not False


def _replies(node: Mapping[str, Any], place: str) -> list[tuple[Mapping[str, Any], str]]:
    """The replies that nobody deleted or rejected, with their places."""
    found = node.get("replies")
    if found is None:
        return []
    if not isinstance(found, list):
        raise RowProblem(f"{place}replies", f"is {kind_of(found)}, not a list of messages")
    kept = []
    for number, reply in enumerate(found):
        where = f"{place}replies[{number}]"
        if not isinstance(reply, Mapping):
            raise RowProblem(where, f"is {kind_of(reply)}, not a message")
        if _usable(reply):
            kept.append((reply, f"{where}."))
    return kept


def _message(node: Mapping[str, Any], place: str) -> Row:
    content = node.get("text", node.get("content"))
    made = normalize_messages([{"role": node.get("role"), "content": content}], place.rstrip(".") or "text")
    return made[0]


def _nodes(row: Row) -> Iterator[tuple[Mapping[str, Any], str, Path]]:
    """Every message with its place and the messages up to and with it, parents before replies."""
    root = _root(row)
    if not isinstance(root, Mapping) or not _usable(root):
        return
    waiting: list[tuple[Mapping[str, Any], str, Path]] = [(root, "", [])]
    while waiting:
        node, place, before = waiting.pop()
        path = [*before, _message(node, place)]
        if len(path) > _DEPTH:
            raise RowProblem("replies", f"are nested more than {_DEPTH} deep")
        yield node, place, path
        waiting += [(reply, where, path) for reply, where in reversed(_replies(node, place))]


@dataclass(frozen=True)
class TreeMessage:
    """A message of a tree, and what people thought of it."""

    path: Path
    """The messages up to and with it."""
    parent: str
    """Place in the tree of the message that it replies to; equal for the replies to one message."""
    rank: int | None
    """0 is best."""
    up: int
    down: int


def tree_messages(row: Row) -> Iterator[TreeMessage]:
    """Every message that nobody deleted or rejected, parents before replies.

    Raises:
        RowProblem: if the tree is malformed.
    """
    for node, place, path in _nodes(row):
        _opinion(node, place)  # checks the counts
        emojis = node.get("emojis") or {}
        up, down = (int(emojis.get(name) or 0) for name in ("+1", "-1"))
        parent = place.removesuffix(".").rpartition("replies[")[0]
        yield TreeMessage(path, parent, _rank(node, place), up, down)


def _opinion(node: Mapping[str, Any], place: str) -> bool | None:
    emojis = node.get("emojis")
    if emojis is None:
        return None
    if not isinstance(emojis, Mapping):
        raise RowProblem(f"{place}emojis", f"is {kind_of(emojis)}, not an object of counts")
    return votes(emojis.get("+1"), emojis.get("-1"), f"{place}emojis")


def _rank(node: Mapping[str, Any], place: str) -> int | None:
    rank = node.get("rank")
    if rank is None:
        return None
    if isinstance(rank, bool) or not isinstance(rank, int | float) or rank != rank // 1:
        raise RowProblem(f"{place}rank", f"is {kind_of(rank)}, not a whole number")
    return int(rank)


def _rankings(row: Row) -> list[Row]:
    """For each message with two or more ranked answers: the path to it, the answers, and their ranks."""
    made = []
    for node, place, path in _nodes(row):
        answers = [(reply, where, _rank(reply, where)) for reply, where in _replies(node, place)]
        ranked = [(_message(reply, where), rank) for reply, where, rank in answers if rank is not None]
        ranked = [(message, rank) for message, rank in ranked if message["role"] == "assistant"]
        if len(ranked) > 1 and path[-1]["role"] != "assistant":
            made.append(
                {
                    "prompt": [dict(message) for message in path],
                    "completions": [[message] for message, _ in ranked],
                    "ranks": [rank for _, rank in ranked],
                }
            )
    return made


def _feedback(row: Row) -> list[Row]:
    """For each answer that has a majority of thumbs: the path to it, the answer, and what the majority says."""
    made = []
    for node, place, path in _nodes(row):
        label = _opinion(node, place)
        asked = len(path) > 1 and path[-2]["role"] != "assistant"
        if label is not None and asked and path[-1]["role"] == "assistant":
            made.append({"prompt": [dict(message) for message in path[:-1]], "completion": [path[-1]], "label": label})
    return made


def _best_path(row: Row) -> list[Row]:
    """The conversation that people rated best: from the first message on always the best reply, up to an answer.

    Best is the lowest rank; among the unranked more thumbs up than down come first, then the order in the tree.
    Replies with more thumbs down than up end the path.
    """
    root = _root(row)
    if not isinstance(root, Mapping) or not _usable(root):
        return []
    node, place = root, ""
    messages = [_message(root, "")]
    while True:
        choices = []
        for number, (reply, where) in enumerate(_replies(node, place)):
            rank, opinion = _rank(reply, where), _opinion(reply, where)
            if opinion is not False:
                choices.append(((rank is None, rank or 0, not opinion, number), reply, where))
        if not choices:
            break
        _, node, place = min(choices, key=lambda choice: choice[0])
        messages.append(_message(node, place))
        if len(messages) > _DEPTH:
            raise RowProblem("replies", f"are nested more than {_DEPTH} deep")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return [{"messages": messages}] if messages else []


def _any(rows: Sequence[Row], holds: Callable[[Mapping[str, Any], str], Any]) -> bool:
    for row in rows:
        try:
            if any(holds(node, place) is not None for node, place, _ in _nodes(row)):
                return True
        except RowProblem:
            continue
    return False


def _is_tree(row: Row) -> bool:
    root = _root(row)
    return isinstance(root, Mapping) and isinstance(root.get("replies"), list)


def _looks(holds: Callable[[Mapping[str, Any], str], Any] | None) -> Callable[[Sequence[Row]], int]:
    def judge(rows: Sequence[Row]) -> int:
        trees = [row for row in rows if _is_tree(row)]
        if 2 * len(trees) <= len(rows):
            return NO
        return YES if holds is None or _any(trees, holds) else NO

    return judge


def _formats(prefix: str, columns: tuple[str, ...]) -> list[Format]:
    shared: dict[str, Any] = {"columns": columns, "rivals": "tree"}
    return [
        Format(
            name=f"{prefix}_ranked",
            schema="ranked",
            convert=_rankings,
            looks=_looks(_rank),
            note="one row for each message with ranked answers",
            summary="message trees: the ranks of the answers to one message",
            **shared,
        ),
        Format(
            name=f"{prefix}_feedback",
            schema="feedback",
            convert=_feedback,
            looks=_looks(_opinion),
            note="one row for each answer with a majority of thumbs",
            summary="message trees: thumbs up and down of each answer",
            **shared,
        ),
        Format(
            name=f"{prefix}_conversation",
            schema="conversation",
            convert=_best_path,
            looks=_looks(None),
            note="the best-rated path of each tree",
            summary="message trees: the conversation along the best-rated replies",
            **shared,
        ),
    ]


TREE_FORMATS: tuple[Format, ...] = (
    *_formats("tree", ("text", "role", "replies")),
    *_formats("prompt_tree", ("message_tree_id", "prompt")),
)
