"""The tables of the report, as text, from ``metrics.json``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anomaly3d.evaluation.metrics import as_text, whole_percent
from anomaly3d.scans.manifest import TRUTH

ROLES = {"method": "", "trivial": "Control: ", "upper": "Upper control: ", "oracle": "Oracle: "}


@dataclass(frozen=True)
class Table:
    """Cells are text; an empty table is not shown."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def as_number(value: float | None) -> str:
    """Four digits; ``none`` where there is no number."""
    return "none" if value is None else f"{value:.4g}"


def percent(share: dict[str, Any]) -> str:
    """``54.1 % [45.7, 62.2], n = 135``."""
    if share["value"] is None:
        return "none"
    low, high = share["ci95"]
    return f"{100 * share['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}], n = {share['n']}"


def title_of(detectors: dict[str, dict[str, str]], label: str) -> str:
    """A detector for people: what it is, and after which phase where that is not its last."""
    known = detectors[label]
    stage = f", after phase {known['stage']}" if "/" in label else ""
    return f"{ROLES[known['role']]}{known['title']}{stage}"


def auc_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """The AUC table as text, one row a result."""
    results = metrics["results"]
    chosen, focus = (results["selected"] or {}).get("score"), title_of(metrics["detectors"], metrics["focus"])
    cohorts = [(", A(x)" if chosen else "", results["cohort"])]
    cohorts += [(f", {chosen}", results["cohort_selected"])] if chosen else []
    named = [
        (f"{focus}, all cohorts{', A(x)' if chosen else ''}", results["all"]),
        (f"{focus}, all cohorts, {chosen}, the score of the thresholds", results["selected"]),
        *((f"Cohort {name}{words}", by_cohort[name]) for name in results["cohort"] for words, by_cohort in cohorts),
        *((f"Score {name} alone", found) for name, found in results["part"].items()),
        ("All cohorts, scans that quality control set aside counted as flagged", results["rejected_flagged"]),
        *beside(metrics),
    ]
    return [
        {
            "name": name,
            "auc": as_text(found["auc"]),
            "ap": f"{as_text(found['ap'])}, chance {found['chance_ap']:.2f}",
            "n": f"{found['auc']['n_normal']} + {found['auc']['n_abnormal']}",
        }
        for name, found in named
        if found
    ]


def beside(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The other detectors by their own score, each with the score that was chosen for it below."""
    results, rows = metrics["results"], []
    for label, found in results["other"].items():
        title = title_of(metrics["detectors"], label)
        rows.append((title, found))
        layered = results.get("other_selected", {}).get(label)
        if layered and layered["score"] != "total":
            rows.append((f"{title}, the score chosen for it ({layered['score']})", layered))
    return rows


def tables(metrics: dict[str, Any]) -> list[Table]:
    """Everything beyond the AUC, in the order in which a reader asks for it."""
    return [
        flow(metrics),
        unlike(metrics),
        operating_points(metrics),
        recall(metrics),
        false_positives(metrics),
        conformal(metrics),
        shift(metrics),
        localization(metrics),
        compared(metrics),
        choice(metrics),
    ]


def flow(metrics: dict[str, Any]) -> Table:
    return Table(
        "Scans",
        "What quality control made of each split; test scans that it rejects stay in where their group is low_quality.",
        ("Split", "Scans", "Subjects", "Accepted", "Rejected", "Unreadable", "Used"),
        [(split, *(str(n) for n in counts.values())) for split, counts in metrics["flow"].items()],
    )


def unlike(metrics: dict[str, Any]) -> Table:
    return Table(
        "Unlike the training scans",
        "Test scans whose noise, slices, values by depth or fit to the template lie outside of what was trained with: "
        "their scores tell of the scanner rather than of the head. The table of scans says in what they differ.",
        ("Cohort", "Unlike, of normal and abnormal scans"),
        [(cohort, percent(found)) for cohort, found in metrics.get("unlike_training", {}).items()],
    )


def operating_points(metrics: dict[str, Any]) -> Table:
    return Table(
        "Thresholds",
        "A locked threshold comes from healthy calibration scans; an oracle was chosen on these very test scans.",
        ("Score", "Threshold", "Value", "Recall", "Specificity", "Accuracy", "Precision"),
        [
            (
                p["score"],
                p["rule"],
                as_number(p["threshold"]),
                *(percent(p[k]) for k in ("recall", "specificity", "accuracy", "precision")),
            )
            for p in metrics["operating_points"]
        ],
    )


def recall(metrics: dict[str, Any]) -> Table:
    found = metrics.get("recall_by", {})
    return Table(
        "Recall at the locked threshold",
        "By lesion type (a scan counts for each it shows) and by lesion volume.",
        ("Abnormal scans", "Recall"),
        [(name, percent(s)) for group in ("lesion", "volume") for name, s in found.get(group, {}).items()],
    )


def false_positives(metrics: dict[str, Any]) -> Table:
    found = metrics.get("false_positives_by", {})
    rows = [("all", percent(found["all"]))] if found and found["all"]["n"] else []
    for stratum in ("site", "age", "sex"):
        rows += [(f"{stratum}: {name}", percent(s)) for name, s in found.get(stratum, {}).items()]
    return Table("False positives at the locked threshold", "", ("Healthy test scans", "Flagged"), rows)


def conformal(metrics: dict[str, Any]) -> Table:
    return Table(
        "Conformal p-values",
        "The promise is marginal, over calibration sets and scans of the same kind; it is void at another site.",
        ("Site", "At most", "Healthy test scans with so small a p-value"),
        [(c["site"], whole_percent(c["nominal"]), percent(c["realised"])) for c in metrics.get("conformal", [])],
    )


def shift(metrics: dict[str, Any]) -> Table:
    return Table(
        "Healthy scores between sites",
        "Chance that a healthy scan of the other site has the higher score: 0.5 where scores do not know the site.",
        ("Site", "Against", "AUC [95 %]", "Ratio of medians", "n"),
        [
            (
                site,
                s["against"],
                as_text({**s, "value": s["auc"]}),
                "" if s["median_ratio"] is None else f"{s['median_ratio']:.2f}",
                f"{s['n'][1]}, {s['n'][0]}",
            )
            for site, s in metrics["site_shift"].items()
        ],
    )


def localization(metrics: dict[str, Any]) -> Table:
    found = metrics["localization"]
    rows = [
        (
            TRUTH[mask],
            name,
            as_text(entry["auroc"]),
            f"{as_text(entry['ap'])}, chance {entry['chance_ap']['value']:.3f}",
            as_text(entry["dice"]) if "dice" in entry else "none",
            percent(entry["found"]) if "found" in entry else "none",
            str(entry["n_scans"]) + (f"; {entry['n_vanished']} more have no voxel" if entry["n_vanished"] else ""),
        )
        for mask in TRUTH
        for name, entry in found.get(mask, {}).items()
    ]
    false = ", ".join(f"{n} {as_text(e)}" for n, e in found.get("healthy_false_parts", {}).items())
    at_threshold = "Dice and lesions found at the locked voxel threshold. " + (
        f"Separate places flagged in a healthy scan: {false}." if false else ""
    )
    if not metrics["thresholds_from"]:
        at_threshold = (
            "Dice and lesions found take a voxel threshold locked on calibration scans, of which there are none."
        )
    return Table(
        "Where the lesion is",
        "Inside the brain, means over scans whose lesion is still there at this resolution. " + at_threshold,
        ("Truth", "Map", "Voxel AUROC", "Voxel AP", "Dice", "Lesions found", "Scans"),
        rows,
    )


def compared(metrics: dict[str, Any]) -> Table:
    def p(value: float) -> str:
        return "< 0.001" if value < 0.001 else f"{value:.3f}"

    def rows(kind: str, words: str) -> list[tuple[str, ...]]:
        return [
            (
                title_of(metrics["detectors"], name) + words,
                as_text(c),
                p(c["p"]),
                p(c["p_holm"]),
                f"[{c['bootstrap95'][0]:.3f}, {c['bootstrap95'][1]:.3f}]",
            )
            for name, c in metrics.get(kind, {}).items()
        ]

    return Table(
        "Against the others, on the same scans",
        "AUC of this detector minus theirs, each by its own score, then each by the one chosen for it without labels: "
        "DeLong's paired test, with Holm's correction over the rows of each score; bootstrap over subjects.",
        ("Other", "Difference [95 %]", "p", "p, Holm", "Bootstrap [95 %]"),
        [*rows("compared", ""), *rows("compared_selected", ", chosen scores")],
    )


def without_each(score: dict[str, Any]) -> str:
    """For each kind of pasted anomaly the AUC of the score that the other kinds choose, beside that of A(x)."""
    return ", ".join(
        f"{kind.replace('_', ' ')} {found['auc']:.2f} (A(x) {found['auc_total']:.2f})"
        for kind, found in score["without_each"].items()
    )


def choice(metrics: dict[str, Any]) -> Table:
    score, oracle = metrics["score"], metrics["score"]["oracle_test_auc"]
    return Table(
        "Scores",
        f"Thresholds belong to {score['chosen']}, "
        + (
            "which the command named. "
            if score["by"] == "config"
            else "chosen by how well healthy validation scans are told from the same scans with something pasted in; "
            "another score replaces A(x), total, only where it is better beyond chance. "
        )
        + f"What is usual in its maps was measured on {score['healthy_scans']} healthy scans. "
        + (
            "The test AUC of each score is an oracle; Spearman's correlation with the ranking by pasted anomalies: "
            f"{score['agreement']}. "
            if oracle
            else ""
        )
        + f"Chosen without one kind of them, on that kind: {without_each(score)}.",
        ("Score", "AUC, pasted anomalies", *(["Test AUC [95 %], oracle"] if oracle else [])),
        [
            (name, f"{value:.3f}", *([as_text(oracle[name])] if oracle else []))
            for name, value in score["pseudo_auc"].items()
        ],
    )
