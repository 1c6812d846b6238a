"""One file per command of ``sae-lm``: each has a ``run(settings)`` that prints and returns the exit code."""
