"""Preference pairs: which of two answers users found better, for as many pairs of a prompt as are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice

from tunekit.feedback.export import ExportReport
from tunekit.feedback.said import Answer, Asked, Rules, agreement, at_least

__all__ = ["Pair", "decided", "without_circles"]

_FEW = 64
"""Answers of a prompt of which every pair is looked at: 2,016 pairs."""
_SPARE = 10
"""Of a prompt with more answers: pairs that are derived for each one that is wanted, to choose from."""
_TRIED = 20_000
"""Pairs of such a prompt that are looked at, beside direct comparisons, before the search for more is given up."""


@dataclass(frozen=True)
class Pair:
    """Keys of two answers, and why the first is better."""

    better: str
    worse: str
    direct: bool
    votes: int
    gap: float
    time: float
    record: str


def decided(asked: Asked, rules: Rules, derived: bool, most: int | None, report: ExportReport) -> list[Pair]:
    """The pairs on which voters agree: by direct comparison, by what one voter said of both answers, and between the
    verdicts of different voters where nobody compared them.

    A prompt with thousands of answers has millions of pairs: with ``most``, only as many are derived as a choice of
    that many needs, those first that one voter judged and that lie far apart.
    """
    found: list[Pair] = []
    enough = None if most is None or len(asked.answers) <= _FEW else len(asked.choices) + _SPARE * most
    for first, second in _candidates(asked, rules, derived, most):
        if len(found) == enough:
            break
        low, high = sorted((first.key, second.key))
        said = asked.choices.get((low, high), {})
        direct = {voter: better for voter, (better, _) in said.items()}
        voters = _both_judged(first, second, rules) | direct if derived else direct
        time = max(first.time, second.time)
        ids = [record for _, record in said.values()]
        record = ids[-1] if ids else max((first, second), key=lambda answer: answer.time).record
        gap = abs((first.mean() or 0.0) - (second.mean() or 0.0)) if first.ratings and second.ratings else 0.0
        if voters:
            wins = sum(better == first.key for better in voters.values())
            verdict, why = rules.verdict(wins, len(voters) - wins)
            if verdict is None:
                report.out(why, record)
                continue
            better, worse = (first, second) if verdict else (second, first)
            found.append(Pair(better.key, worse.key, bool(direct), len(voters), gap, time, record))
        elif derived:
            better_key, why = _across(first, second, rules)
            if better_key is None:
                if why:
                    report.out(why, record)
            else:
                worse_key = second.key if better_key == first.key else first.key
                found.append(Pair(better_key, worse_key, False, 0, gap, time, record))
    return found


def _candidates(asked: Asked, rules: Rules, derived: bool, most: int | None) -> Iterator[tuple[Answer, Answer]]:
    """Pairs of answers that somebody may have told apart, each once, in the order of the answers within a pair."""
    answers = list(asked.answers.values())
    if derived and (most is None or len(answers) <= _FEW):
        yield from combinations(answers, 2)
        return
    place = {answer.key: number for number, answer in enumerate(answers)}
    direct = sorted(tuple(sorted((place[one], place[other]))) for one, other in asked.choices)
    for one, other in direct:
        yield answers[one], answers[other]
    if not derived or most is None:
        return
    seen = set(direct)
    for first, second in chain(_of_one_voter(answers, rules), _of_verdicts(answers, rules)):
        one, other = sorted((place[first.key], place[second.key]))
        if (one, other) not in seen:
            seen.add((one, other))
            yield answers[one], answers[other]
            if len(seen) - len(direct) == _TRIED:
                return


def _of_one_voter(answers: Sequence[Answer], rules: Rules) -> Iterator[tuple[Answer, Answer]]:
    """Pairs that one voter judged apart; of many voters in turn."""
    judged: dict[str, list[Answer]] = {}
    for answer in answers:
        for voter in answer.votes.keys() | answer.ratings.keys():
            judged.setdefault(voter, []).append(answer)
    waiting = []
    for voter, his in sorted(judged.items()):
        if len(his) > 1:
            ratings = {answer.key: answer.ratings[voter][0] for answer in his if voter in answer.ratings}
            good = {answer.key: answer.opinions(rules.rating_split).get(voter) for answer in his}
            waiting.append(_apart(his, ratings, good, rules))
    yield from _in_turn(waiting)


def _of_verdicts(answers: Sequence[Answer], rules: Rules) -> Iterator[tuple[Answer, Answer]]:
    """Pairs that different voters judged apart."""
    ratings: dict[str, float] = {}
    good: dict[str, bool | None] = {}
    for answer in answers:
        mean = answer.mean()
        if mean is not None and len(answer.ratings) >= rules.min_votes:
            ratings[answer.key] = mean
        said = answer.opinions(rules.rating_split)
        good[answer.key] = rules.verdict(sum(said.values()), len(said) - sum(said.values()))[0] if said else None
    yield from _apart(answers, ratings, good, rules)


def _apart(
    answers: Sequence[Answer], ratings: Mapping[str, float], good: Mapping[str, bool | None], rules: Rules
) -> Iterator[tuple[Answer, Answer]]:
    """Good answers with bad ones, and ratings that differ enough, those that differ the most first."""
    rated = sorted((answer for answer in answers if answer.key in ratings), key=lambda answer: ratings[answer.key])
    ups = [answer for answer in answers if good[answer.key] is True]
    downs = [answer for answer in answers if good[answer.key] is False]
    yield from _in_turn([_gaps(rated, [ratings[answer.key] for answer in rated], rules.min_gap), _crossed(ups, downs)])


def _gaps(rated: Sequence[Answer], ratings: Sequence[float], least: float) -> Iterator[tuple[Answer, Answer]]:
    for apart in range(len(rated) - 1, 0, -1):
        gaps = [(low, low + apart) for low in range(len(rated) - apart)]
        wide = [(low, high) for low, high in gaps if at_least(ratings[high] - ratings[low], least)]
        if not wide:  # nearer neighbours in the order are not further apart
            return
        yield from ((rated[low], rated[high]) for low, high in wide)


def _crossed(ups: Sequence[Answer], downs: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    """Every one with every other; each of them soon, not one with all others first."""
    for shift in range(len(downs)):
        for number, up in enumerate(ups):
            yield up, downs[(number + shift) % len(downs)]


def _in_turn(waiting: list[Iterator[tuple[Answer, Answer]]]) -> Iterator[tuple[Answer, Answer]]:
    while waiting:
        left = []
        for pairs in waiting:
            some = list(islice(pairs, 1))
            if some:
                yield some[0]
                left.append(pairs)
        waiting = left


def _both_judged(first: Answer, second: Answer, rules: Rules) -> dict[str, str]:
    """Voter -> the answer he judged better, for those who judged both."""
    found = {}
    for voter in (first.votes.keys() | first.ratings.keys()) & (second.votes.keys() | second.ratings.keys()):
        thumbs = first.votes.get(voter), second.votes.get(voter)
        apart = None not in thumbs and thumbs[0] != thumbs[1]
        if voter in first.ratings and voter in second.ratings and not apart:
            gap = first.ratings[voter][0] - second.ratings[voter][0]
            if at_least(abs(gap), rules.min_gap):
                found[voter] = first.key if gap > 0 else second.key
                continue
        one, other = (answer.opinions(rules.rating_split).get(voter) for answer in (first, second))
        if one is not None and other is not None and one != other:
            found[voter] = first.key if one else second.key
    return found


def _across(first: Answer, second: Answer, rules: Rules) -> tuple[str | None, str]:
    """The better of two answers by the verdicts of different voters, ratings against ratings, else thumbs against
    thumbs; or None, and why, where the voters disagree too much about answers that are far apart.

    Of ratings, agreement is 1 minus their mean distance from the median. With all of them at the two ends of the scale
    that is the share of the majority, as of thumbs.
    """
    verdicts = []
    for answer in (first, second):
        said = answer.opinions(rules.rating_split)
        verdicts.append(rules.verdict(sum(said.values()), len(said) - sum(said.values()))[0] if said else None)
    told_apart = None not in verdicts and verdicts[0] != verdicts[1]
    by_verdict = (first.key if verdicts[0] else second.key) if told_apart else None
    one, other = first.mean(), second.mean()
    if one is None or other is None or min(len(first.ratings), len(second.ratings)) < rules.min_votes:
        return by_verdict, ""
    if not at_least(abs(one - other), rules.min_gap):
        return None, ""
    by_rating = first.key if one > other else second.key
    if by_verdict is not None:
        return (by_rating, "") if by_verdict == by_rating else (None, "conflict")
    shares = [(1 + agreement(rating for rating, _, _ in answer.ratings.values())) / 2 for answer in (first, second)]
    return (by_rating, "") if at_least(min(shares), rules.min_agreement) else (None, "conflict")


def without_circles(pairs: list[Pair], report: ExportReport) -> list[Pair]:
    """Leave out the pairs that lie on a circle of preferences: no order of the answers fits them."""
    part = _strongly_connected(pairs)
    kept = []
    for pair in pairs:
        if part[pair.better] == part[pair.worse]:
            report.out("cycle", pair.record)
        else:
            kept.append(pair)
    return kept


def _strongly_connected(pairs: Sequence[Pair]) -> dict[str, int]:
    """Answer -> number of its strongly connected component (Tarjan, 1972), without recursion."""
    beats: dict[str, list[str]] = {}
    for pair in pairs:
        beats.setdefault(pair.better, []).append(pair.worse)
        beats.setdefault(pair.worse, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    part: dict[str, int] = {}
    stack: list[str] = []
    for start in beats:
        if start in index:
            continue
        path = [(start, iter(beats[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        while path:
            key, following = path[-1]
            for other in following:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    path.append((other, iter(beats[other])))
                    break
                if other not in part:
                    low[key] = min(low[key], index[other])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[key])
                if low[key] == index[key]:
                    number = index[key]
                    while True:
                        done = stack.pop()
                        part[done] = number
                        if done == key:
                            break
    return part
