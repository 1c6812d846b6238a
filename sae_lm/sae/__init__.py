"""A sparse autoencoder in use: what it computes, its sparse codes, its rows, how it is saved and loaded."""
