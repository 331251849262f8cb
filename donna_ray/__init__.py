"""Finds neural networks for a given device: the method of DONNA (ICCV 2021), on Ray.

Moons et al., "Distilling Optimal Neural Networks: Rapid Search in Diverse Spaces",
arXiv 2012.08859. The command line is in `donna_ray.cli.main`, the steps in `donna_ray.pipeline`.
"""
