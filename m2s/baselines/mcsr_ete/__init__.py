"""MCSR-ETE: motion correction and super-resolution of label maps, trained jointly (Chen et al.)."""
