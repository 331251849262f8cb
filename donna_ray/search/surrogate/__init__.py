"""The latency of a network, learnt from those that were measured."""
