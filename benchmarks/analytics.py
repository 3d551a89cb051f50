"""The portraits catalogue: do the intervals hold the pooled truth, and are the bars met? Prints two tables.

Each analysis has its cases in a file of its own beside this one, analytics_KIND.py.

    python benchmarks/analytics.py [--seeds 20] [KIND ...]

Cases over real data need it beside the project (../shared/data) and are skipped, loudly, where it is not.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from analytics_harness import EPSILONS, coverage

PREFIX = "analytics_"
LEAST, MOST = 92.0, 98.5
KINDS = sorted(
    p.stem.removeprefix(PREFIX)
    for p in Path(__file__).parent.glob(f"{PREFIX}*.py")
    if p.stem != f"{PREFIX}harness"
)


def print_coverage(modules: dict[str, Any], seeds: int) -> None:
    print(
        f"Intervals that hold the pooled truth, %, over {seeds} seeds; 95 are promised, {LEAST:g} to {MOST:g} wanted."
    )
    print(
        "| analysis | set | branches | numbers a seed | "
        + " | ".join(f"eps {e:g}" for e in EPSILONS)
        + " | lowest sort |"
    )
    print("|---" * (5 + len(EPSILONS)) + "|")
    for kind, module in modules.items():
        for case in module.cases():
            scores = [coverage(case, e, seeds) for e in EPSILONS]
            rates = [100 * float(np.mean(s.all)) for s in scores]
            worst = min(
                ((100 * float(np.mean(h)), w) for s in scores for w, h in s.held.items()), default=(0.0, "-")
            )
            shown = " | ".join(f"{r:.1f}{'' if LEAST <= r <= MOST else ' MISSED'}" for r in rates)
            count = len(scores[0].all) // seeds
            print(
                f"| {kind} | {case.name} | {len(case.branches)} | {count} | {shown} | {worst[1]}: {worst[0]:.0f} |",
                flush=True,
            )


def print_bars(modules: dict[str, Any], seeds: int) -> None:
    print("\n| analysis | bar | wanted | seen | holds |\n|---|---|---|---|---|")
    for kind, module in modules.items():
        for bar in module.bars(seeds) if hasattr(module, "bars") else ():
            print(
                f"| {kind} | {bar.name} | {bar.wanted} | {bar.seen} | {'yes' if bar.holds else 'NO'} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        if kind not in KINDS:
            parser.error(f"no {kind!r}; there are {', '.join(KINDS)}")
    modules = {kind: import_module(PREFIX + kind) for kind in arguments.kinds}
    print_coverage(modules, arguments.seeds)
    print_bars(modules, arguments.seeds)


if __name__ == "__main__":
    main()
