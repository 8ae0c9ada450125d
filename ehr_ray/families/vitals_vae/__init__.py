"""Vitals VAE: a multi-scale autoencoder of hourly vital signs, with its baseline and fallback."""
