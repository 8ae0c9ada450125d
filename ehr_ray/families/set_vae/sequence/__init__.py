"""SeqSetVAE-PoE: a stay as a sequence of sets, each expected from those before."""
