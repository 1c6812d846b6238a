"""SAE and activations -> numbers: pure functions, sums in float64, denominators reported."""
