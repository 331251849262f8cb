"""How runs of a model become a figure that holds on a busy host."""
