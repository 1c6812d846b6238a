"""Compare trained SAEs: measure them on the same rows, pair them by seed, judge the differences, write the report."""
