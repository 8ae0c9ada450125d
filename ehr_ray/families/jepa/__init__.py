"""JEPA on hours or visits: rows of a patient predicted in the space of their own encoder."""
