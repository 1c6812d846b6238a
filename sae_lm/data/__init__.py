"""text -> tokens -> activations -> shards -> batches; knows nothing of SAEs."""
