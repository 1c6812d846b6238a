"""Human concepts: labels of tokens and places, rows sampled for them, and linear probes."""
