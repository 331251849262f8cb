"""The way to the device farm: candidates as ONNX models, and what they take."""
