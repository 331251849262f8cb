"""A finetuned network for use elsewhere: weights, ONNX, one Python file, a card."""
