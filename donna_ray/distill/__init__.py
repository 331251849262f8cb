"""Blocks distilled from the reference's stages: a pack of them in one pass over the images."""
