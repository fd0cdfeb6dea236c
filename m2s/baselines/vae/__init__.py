"""Ablation of the codebook: a VAE in place of the VQ-VAE (paper, Table 3)."""
