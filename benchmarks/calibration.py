"""How often the statistical procedures are wrong when there is nothing to find, and how often they find what is there.

Claim: every figure lies where docs/measures.md says it should, give or take three Monte-Carlo standard errors. Printed
is the table that stands there; the routers are simulated (tests/simulated_routers.py), so that the truth is known. The
rivals in the same run are what is usually published: intervals without clusters, a test over types without strata,
labels permuted across documents. `make prove` holds the same figures.

    python benchmarks/calibration.py [--seeds 20] [--processes 2]
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from calibration_figures import as_table
from calibration_studies import STUDIES, figures_of


def main() -> None:
    """Judge, print, and say what is not where it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=20, help="how many draws of each router (200 in the documentation)"
    )
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(asked.processes) as pool:
        figures = [figure for of in pool.map(partial(figures_of, n_seeds=asked.seeds), STUDIES) for figure in of]
    print(as_table(figures))
    print(f"\n{asked.seeds} seeds; value ± Monte-Carlo standard error; {time.perf_counter() - start:.0f} s")
    missed = [figure for figure in figures if not figure.held]
    for figure in missed:
        print(f"MISSED: {figure}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
