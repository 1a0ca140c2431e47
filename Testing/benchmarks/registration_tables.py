"""Tables of ``registration_programs``: ranking, broken results, false alarms, and the rank on pairs of people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.tables import markdown

DRAWS = 2000
BASELINES = ("nothing", "affine")
BROKEN = ("stopped half way", "shifted by 5 mm", "inverted")
Row = dict[str, Any]


def matrix(rows: Sequence[Row], anatomy: str, pair: str, figure: str) -> tuple[list[str], np.ndarray]:
    """Return the names of the settings, and the figure (cases, settings) of the cases that all of them have."""
    some = [row for row in rows if row["anatomy"] == anatomy and row["pair"] == pair and figure in row]
    names = list(dict.fromkeys(row["program"] for row in some))
    cases: dict[str, dict[str, float]] = {}
    for row in some:
        cases.setdefault(row["case"], {})[row["program"]] = row[figure]
    whole = [[case[name] for name in names] for case in cases.values() if len(case) == len(names)]
    return names, np.asarray(whole, float).reshape(len(whole), len(names))


def resampled_ranks(errors: np.ndarray) -> np.ndarray:
    """Return the ranks (draws, settings) of the means over cases that are drawn with replacement."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(errors), size=(DRAWS, len(errors)))
    return stats.rankdata(errors[drawn].mean(axis=1), axis=1)


def ranking(rows: Sequence[Row], anatomy: str, pair: str) -> tuple[str, dict[str, Any]]:
    """Return the settings by their mean error, with the interval of 95 % of their ranks."""
    names, errors = matrix(rows, anatomy, pair, "mean_mm")
    if not len(errors):
        return "", {}
    ranks = resampled_ranks(errors)
    low, high = np.percentile(ranks, [2.5, 97.5], axis=0)
    figures = {key: matrix(rows, anatomy, pair, key)[1] for key in ("landmarks_mm", "dice", "folded")}
    order = np.argsort(errors.mean(axis=0))
    lines = []
    for place, k in enumerate(order):
        dice = figures["dice"]
        lines.append(
            {
                "rank (95 %)": f"{place + 1} ({low[k]:.0f} to {high[k]:.0f})",
                "result": names[k],
                "body, mm": f"{errors[:, k].mean():.2f}",
                "landmarks, mm": f"{figures['landmarks_mm'][:, k].mean():.2f}",
                "Dice": f"{dice[:, k].mean():.2f}" if len(dice) and np.isfinite(dice).all() else "-",
                "folded, %": f"{100 * figures['folded'][:, k].mean():.2f}",
            }
        )
    whole = stats.rankdata(errors.mean(axis=0))
    agree = [float(stats.spearmanr(whole, one).statistic) for one in ranks[:500]]
    found = {
        "cases": len(errors),
        "order": [names[k] for k in order],
        "mean_mm": {names[k]: float(errors[:, k].mean()) for k in order},
        "agreement_of_resampled_rankings": [float(np.median(agree)), float(np.percentile(agree, 2.5))],
    }
    text = (
        f"### {anatomy}, recipe {pair}, {len(errors)} cases\n\n{markdown(lines)}\n\n"
        f"Rankings of cases drawn anew agree with this one by a Spearman correlation of {np.median(agree):.2f} "
        f"(95 % above {np.percentile(agree, 5):.2f}).\n"
    )
    return text, found


def faults(rows: Sequence[Row], anatomy: str, pair: str) -> tuple[str, dict[str, Any]]:
    """Compare deliberately broken results with the sound ones, case by case and by their means."""
    some = [row for row in rows if row["anatomy"] == anatomy and row["pair"] == pair and "broken" in row]
    if not some:
        return "", {}
    sound: dict[str, list[float]] = {}
    for row in some:
        sound.setdefault(row["case"], []).append(row["mean_mm"])
    worst_mean = max(np.mean([r["mean_mm"] for r in some if r["program"] == p]) for p in {r["program"] for r in some})
    lines, found = [], {}
    for kind in BROKEN:
        means = [np.mean([r["broken"][kind] for r in some if r["program"] == p]) for p in {r["program"] for r in some}]
        figures = {
            "mean_mm": float(np.mean([row["broken"][kind] for row in some])),
            "behind_own": float(np.mean([row["broken"][kind] > row["mean_mm"] for row in some])),
            "behind_all_of_the_case": float(np.mean([row["broken"][kind] > max(sound[row["case"]]) for row in some])),
            "means_behind_all_sound_means": float(np.mean([mean > worst_mean for mean in means])),
        }
        found[kind] = figures
        lines.append(
            {
                "fault": kind,
                "body, mm": f"{figures['mean_mm']:.2f}",
                "behind its own sound result": f"{figures['behind_own']:.0%}",
                "behind all sound results of the case": f"{figures['behind_all_of_the_case']:.0%}",
                "behind all sound settings in the mean": f"{figures['means_behind_all_sound_means']:.0%}",
            }
        )
    found["in_their_order"] = float(
        np.mean([[*map(row["broken"].get, BROKEN)] == sorted(map(row["broken"].get, BROKEN)) for row in some])
    )
    alarms = [row for row in some if row.get("looks_like")]
    found["alarms"], found["results"] = len(alarms), len(some)
    text = (
        f"{markdown(lines)}\n\n"
        f"The three faults are in this order in {found['in_their_order']:.0%} of {len(some)} results. "
        f"False alarms on sound results: {len(alarms)} of {len(some)}.\n"
    )
    return text, found


def agreement(rows: Sequence[Row], anatomy: str, pair: str) -> tuple[str, dict[str, Any]]:
    """Return the rank correlation of two figures on made pairs with the overlap on pairs of different people."""
    others, dice = matrix(rows, anatomy, "people", "dice")
    text, found = "", {}
    for figure, words, sign in (("mean_mm", "mean error", -1), ("dice", "Dice", 1)):
        names, values = matrix(rows, anatomy, pair, figure)
        if not len(values) or not len(dice) or sorted(names) != sorted(others):
            return "", {}
        people = dice[:, [others.index(name) for name in names]]
        if not text:
            means = {name: float(value) for name, value in zip(names, people.mean(axis=0), strict=True)}
            order = ", ".join(f"{name} {means[name]:.3f}" for name in sorted(means, key=lambda name: -means[name]))
            text = f"Pairs of different people ({anatomy}, {len(dice)}), by the Dice of their labels: {order}.\n"
            found = {"pairs": len(dice), "dice": means}
        whole, low, high = rank_correlation(sign * values, people)
        text += f"Rank correlation (Spearman) with the {words} of the recipe {pair}: "
        text += f"{whole:.2f} (95 %: {low:.2f} to {high:.2f}).\n"
        found["spearman" if figure == "mean_mm" else "spearman_of_dice"] = whole
        found["interval" if figure == "mean_mm" else "interval_of_dice"] = [low, high]
    return text, found


def rank_correlation(values: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Return Spearman's correlation of the means over cases (N, programs), and its interval of 95 % over cases."""
    generator = np.random.default_rng(0)

    def correlation(some: np.ndarray, other: np.ndarray) -> float:
        return float(stats.spearmanr(values[some].mean(axis=0), others[other].mean(axis=0)).statistic)

    drawn = [
        correlation(
            generator.integers(len(values), size=len(values)), generator.integers(len(others), size=len(others))
        )
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return correlation(np.arange(len(values)), np.arange(len(others))), float(low), float(high)


def tables(rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
    """Return all tables as Markdown, and their figures."""
    texts, found = [], {}
    for anatomy, pair in dict.fromkeys((row["anatomy"], row["pair"]) for row in rows if row["pair"] != "people"):
        parts = {f.__name__: f(rows, anatomy, pair) for f in (ranking, faults, agreement)}
        texts += [text for text, _ in parts.values() if text]
        found[f"{anatomy}, {pair}"] = {name: figures for name, (_, figures) in parts.items()}
    return "\n".join(texts), found
