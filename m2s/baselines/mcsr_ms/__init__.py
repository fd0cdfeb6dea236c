"""MCSR-MS (ISBI 2024): centre line from the stack, super-resolution, centre line from its answer; three trainings.

What is published of it is an abstract; layers, losses and epochs are those of the earlier tree of MCSR-ETE's
repository that its three steps match.
"""
