"""Mask2Surface, the lean runtime: from label maps to surfaces, without torch."""
