"""Trained networks for other runtimes: plain C99 for microcontrollers, ONNX."""
