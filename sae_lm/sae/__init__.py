"""Use a sparse autoencoder: encode, decode, save, load, compare its rows."""
