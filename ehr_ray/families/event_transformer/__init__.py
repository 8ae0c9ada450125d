"""Event transformers: an encoder or decoder over events embedded as phrases (seed: embedded)."""
