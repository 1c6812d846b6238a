"""Directory formats of SAEs, one module each."""
