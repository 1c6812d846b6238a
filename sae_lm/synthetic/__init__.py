"""Worlds whose features are known: SAEs trained on them by the dozen, and what those have found."""
