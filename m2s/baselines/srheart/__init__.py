"""SRHeart (Wang et al., MICCAI 2021): a beta-VAE of heart shapes, and a search in it for the heart that was imaged."""
