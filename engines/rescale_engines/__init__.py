"""ONNX graphs to TensorRT engines. Imports no TensorRT by itself."""
