"""Measure SAEs on activations: sparsity, faithfulness, splitting, absorption, geometry; sums in float64."""
