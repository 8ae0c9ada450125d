"""HCAT: five modalities, imputed where they are missing, fused to two outcomes."""
