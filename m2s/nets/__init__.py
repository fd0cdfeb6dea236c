"""The networks, one file for each box of the paper's Fig. 1; their sizes stand in `presets`."""
