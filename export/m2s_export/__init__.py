"""From a training run to a model bundle, checked against PyTorch before it is published, and on to TensorRT engines."""
