"""Ablations of the condition: super-resolved mask, or the raw slices, in place of the C-SDG (paper, Table 3)."""
