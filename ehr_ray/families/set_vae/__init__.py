"""SetVAE: a variational autoencoder of sets of observed and carried values (seed: SeqSetVAE)."""
