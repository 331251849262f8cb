"""The latency of any network, learnt from those that were measured: ``model.Surrogate``."""
