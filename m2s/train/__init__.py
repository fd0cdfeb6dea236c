"""Training of the three stages: one loop, three stages, resumable runs."""
