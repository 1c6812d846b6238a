"""Trained SAEs to a report: measured on the same rows, paired by seed, judged, put into sentences."""
