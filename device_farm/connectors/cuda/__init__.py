"""NVIDIA GPUs: how a model is loaded there, what they say of themselves, and how they fail."""
