"""Largest difference between a loaded SAE and its own library, format by format; prints a table.

    PYTHONPATH=. python tests/benchmarks/formats.py

Without other libraries each format is compared with its formula in float64. Where sae-lens, dictionary-learning or
eai-sparsify is installed, also with that library's own classes, on files that they have written.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from foreign_saes import FOREIGN
from peer_saes import peer_cases
from sae_formulas import inputs

import sae_lm


def difference(a, b):
    return float((a.double() - b.double()).abs().max())


@torch.no_grad()
def main():
    x = inputs()
    print("| SAE | compared with | encode | reconstruction |\n|---|---|---|---|")
    for name, (write, _) in FOREIGN.items():
        with tempfile.TemporaryDirectory() as folder:
            path, formula = write(Path(folder))
            sae, (z, x_hat) = sae_lm.load(path, "cpu"), formula(x)
        print(f"| {name} | its formula | {difference(sae.encode(x), z):.0e} | {difference(sae(x), x_hat):.0e} |")
    for name, case in peer_cases():
        with tempfile.TemporaryDirectory() as folder:
            path, encode, forward = case(Path(folder))
            sae = sae_lm.load(path, "cpu")
            codes, outputs = difference(sae.encode(x), encode(x)), difference(sae(x), forward(x))
        print(f"| | {name} | {codes:.0e} | {outputs:.0e} |")


if __name__ == "__main__":
    main()
