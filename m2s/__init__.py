"""Mask2Surface, the research side: networks, data, training, metrics. Needs the extra `train`."""
