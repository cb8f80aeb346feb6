"""Export of trained networks: split ONNX graphs in a verified bundle."""
