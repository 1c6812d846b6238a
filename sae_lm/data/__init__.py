"""From text by tokens, activations and shards to batches; knows nothing of SAEs."""
