"""One sparse autoencoder: what it is, what it minimises, how it steps, how it is kept."""
