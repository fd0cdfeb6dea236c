"""From a training run to a model bundle: five ONNX graphs, checked against PyTorch before they are published."""
