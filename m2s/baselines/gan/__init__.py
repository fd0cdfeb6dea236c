"""Ablation of the diffusion: a conditional GAN in the latents of the VQ-VAE (paper, Table 3)."""
