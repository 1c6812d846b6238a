"""Test that a difference is smaller than a margin, which is more than that none was found.

Two one-sided t tests (TOST; Schuirmann 1987) over paired seeds: the difference is above -margin, and it is below
+margin, each at .05. That is the same as a 90% interval that lies within the margin. "Not distinguishable" says that
the seeds found nothing; "equivalent" says that they ruled out anything as large as the margin.

Measured in tests/benchmarks/coverage_crossed.py: of true differences as large as the margin 3.5 to 6% are claimed to
be within it (800 trials, 5% are meant). Of true differences of 0, where paired ones spread by a quarter, half or all of
the margin: 99, 56, 11% at three seeds; 100, 99, 42% at six; 100, 100, 79% at ten.
"""

import math
from collections.abc import Sequence

from sae_lm.metrics.statistics import ROUNDING

MARGIN = 0.02
"""Of a share; a convention. With eight seeds differences of .012 to .017 have been claimed (configs/README.md)."""


def equivalence_p(differences: Sequence[float], margin: float) -> float | None:
    """The p of "the mean is at least a margin from 0"; small: it is nearer.

    differences: of paired seeds, those that are not finite are left out. None below two, and where all are equal,
    which says nothing of their spread.
    """
    known = [difference for difference in differences if math.isfinite(difference)]
    n = len(known)
    if n < 2:
        return None
    mean = math.fsum(known) / n
    spread = math.sqrt(math.fsum((difference - mean) ** 2 for difference in known) / (n - 1))
    if spread <= ROUNDING * max(margin, *map(abs, known)):
        return None
    from scipy.stats import t  # a second's import

    # of the two tests the one nearer to its end of the margin decides
    return float(t.sf((margin - abs(mean)) / (spread / math.sqrt(n)), n - 1))
