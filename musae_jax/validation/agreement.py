"""Do sources agree? The share of features that two sources name alike, beside that of names dealt out at random."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from musae_jax.labels.vocabulary import counterparts, family_of


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    """For each two sources, "a and b": features that both named with confidence above 0, the share with the same
    meaning, the share whose meanings are of one family, and either share by chance (names exchanged between features).

    Names whose meaning the composer does not know are compared as they stand.
    """
    names: dict[str, dict[tuple, str]] = {}
    for row in rows:
        if row["confidence"] > 0:
            names.setdefault(row["source"], {})[row["hook"], row["sae"], row["feature"]] = row["name"]
    result = {}
    for a, b in combinations(names, 2):
        both = sorted(names[a].keys() & names[b].keys())
        if not both:
            continue
        first, second = [names[a][key] for key in both], [names[b][key] for key in both]
        result[f"{a} and {b}"] = {
            "features": len(both),
            **{
                name: round(sum(alike(x, y) for x, y in zip(first, second)) / len(both), 4)
                for name, alike in (("same", _same), ("same_family", _same_family))
            },
            **{
                f"{name}_by_chance": round(_by_chance(first, second, alike), 4)
                for name, alike in (("same", _same), ("same_family", _same_family))
            },
        }
    return result


def _same(a: str, b: str) -> bool:
    return a == b or bool(set(counterparts(a)) & set(counterparts(b)))


def _same_family(a: str, b: str) -> bool:
    return _same(a, b) or (family_of(a) is not None and family_of(a) == family_of(b))


def _by_chance(first: Sequence[str], second: Sequence[str], alike: Any) -> float:
    counts = [{name: names.count(name) for name in set(names)} for names in (first, second)]
    pairs = sum(n * m for a, n in counts[0].items() for b, m in counts[1].items() if alike(a, b))
    return pairs / (len(first) * len(second))
