"""Training and evaluation data: ground-truth hearts, simulated stacks, data set readers."""
