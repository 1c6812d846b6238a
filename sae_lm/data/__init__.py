"""From text to batches of activations: tokenize, cache, store, shuffle."""
