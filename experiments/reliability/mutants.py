"""Put faults into the code one by one and count those that the tests notice.

``make mutants`` or ``python -m experiments.reliability.mutants [MUTANTS]`` writes ``mutants.json``. mutmut makes every
small change that it knows; of each package a random sample, the same each time, is tried: first by the quick tests that
``pyproject.toml`` names; what they have not noticed, by those of whole commands, minutes each. Called again it goes on
where it was stopped.

A changed word of a message, an assertion or a decorator is no fault and is not sampled.
"""

import ast
import json
import os
import random
import subprocess
import sys
from collections import Counter
from difflib import unified_diff
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mutmut.stats import status_by_exit_code

from anomaly3d.statistics.auc import wilson
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say, track

HERE = Path(__file__).parent
PLACE = Path("mutants")
MUTANTS = 60  # of each package
NOTICED = ("killed", "timeout", "segfault")
MUTMUT = [sys.executable, "-m", "mutmut", "run", "--max-children", "2"]
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "whole", "-p", "no:cacheprovider"]
WHOLE = {  # tests of the commands that a package has a part in
    "phases": ["tests/test_train.py", "tests/training"],
    "preprocessing": ["tests/test_prepare.py", "tests/scoring/test_scorer.py"],
    "scoring": ["tests/scoring", "tests/test_score.py", "tests/test_evaluate.py"],
}


def verdicts() -> dict[str, str]:
    """What became of each mutant, by its name."""
    found: dict[str, str] = {}
    for path in sorted(PLACE.rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        found |= {name: status_by_exit_code[code] for name, code in codes.items()}
    return found


class Changes:
    """The lines that mutants change."""

    def __init__(self) -> None:
        self.functions: dict[str, dict[str, list[str]]] = {}

    def of(self, name: str) -> list[str]:
        """Lines taken away and lines put in their place, ``-`` and ``+`` in front."""
        module, _, function = name.rpartition(".x")
        if module not in self.functions:
            tree = ast.parse((PLACE / f"{module.replace('.', '/')}.py").read_text())
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            self.functions[module] = {node.name: ast.unparse(node).splitlines() for node in nodes}
        mutated = f"x{function}"
        original = mutated[: mutated.rindex("__mutmut_")] + "__mutmut_orig"
        lines = (self.functions[module][key] for key in (original, mutated))
        before, after = ([line for line in text if "__mutmut_" not in line] for text in lines)
        return [line for line in unified_diff(before, after, n=0, lineterm="") if line[:3] not in ("---", "+++", "@@ ")]


def is_text(change: list[str]) -> bool:
    """Whether a mutant changes nothing but what a message says."""
    marks = ("raise ", "UserError(", "Alarm(", "say(", "assert ", "title = ", "question = ")
    return not change or any(mark in line for line in change for mark in marks)


def sample(names: list[str], changes: Changes, count: int) -> list[str]:
    """``count`` of the mutants that change what is computed."""
    chosen: list[str] = []
    for name in random.Random(0).sample(sorted(names), len(names)):
        if len(chosen) == count:
            break
        if not is_text(changes.of(name)):
            chosen.append(name)
    return chosen


def main(count: int) -> None:
    """Make the mutants, try a sample, and write what came of it."""
    subprocess.run([*MUTMUT, "none of these"], check=False, stdout=subprocess.DEVNULL)  # makes them, tries none
    changes, packages = Changes(), {}
    for name in verdicts():
        packages.setdefault(name.split(".")[1], []).append(name)
    chosen = {package: sample(names, changes, count) for package, names in packages.items()}
    known = verdicts()
    left = [name for names in chosen.values() for name in names if known[name] == "not checked"]
    say(f"mutants: {sum(map(len, chosen.values()))} of {len(known)}, {len(left)} to try, in {PLACE}/")
    if left:
        subprocess.run([*MUTMUT, *left], check=True)
    found = {package: {name: verdicts()[name] for name in names} for package, names in chosen.items()}
    write(found, packages, changes)
    try_whole(found)
    write(found, packages, changes)


def try_whole(found: dict[str, dict[str, str]]) -> None:
    """Let the tests of whole commands try what the quick ones had not noticed."""
    file = PLACE / "whole.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    left = [(p, n) for p in WHOLE for n, verdict in found.get(p, {}).items() if verdict not in NOTICED]
    for package, name in track(left, len(left), "mutants under whole commands"):
        if name not in known:
            mutated = {**os.environ, "MUTANT_UNDER_TEST": name}
            done = subprocess.run([*PYTEST, *WHOLE[package]], cwd=PLACE, env=mutated, stdout=subprocess.DEVNULL)
            known[name] = status_by_exit_code[done.returncode]
            with written_whole(file) as beside:
                beside.write_text(json.dumps(known, indent=1))
        if known[name] in NOTICED:
            found[package][name] = known[name]


def write(found: dict[str, dict[str, str]], packages: dict[str, list[str]], changes: Changes) -> None:
    """``mutants.json``; reasons that were written for survivors stay."""
    file = HERE / "mutants.json"
    before = json.loads(file.read_text())["survivors"] if file.exists() else []
    reasons = {(s["name"].split("__")[0], *s["change"]): s["reason"] for s in before}
    table, survivors = {}, []
    for package, verdict in found.items():
        table[package] = {"of": len(packages[package]), "tried": len(verdict), **row(Counter(verdict.values()))}
        for name in (n for n, v in verdict.items() if v not in NOTICED):
            change = changes.of(name)
            reason = reasons.get((name.split("__")[0], *change), "")
            survivors.append({"name": name, "verdict": verdict[name], "change": change, "reason": reason})
    total = row(Counter(v for verdict in found.values() for v in verdict.values()))
    content: dict[str, Any] = {"mutmut": version("mutmut"), "packages": table, "all": total, "survivors": survivors}
    with written_whole(file) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    say(f"{total['killed']} noticed, {total['share']:.0%} {total['ci95']}; survivors in {file}")


def row(verdicts: Counter[str]) -> dict[str, Any]:
    """How many were noticed, and the share with its interval."""
    killed, tried = sum(verdicts[name] for name in NOTICED), verdicts.total()
    share = killed / max(tried, 1)
    return {"killed": killed, "share": round(share, 3), "ci95": [round(e, 3) for e in wilson(share, max(tried, 1))]}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else MUTANTS)
