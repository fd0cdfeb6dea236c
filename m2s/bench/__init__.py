"""`m2s-bench`: how fast the parts and the whole are, on which machine, and against what."""
