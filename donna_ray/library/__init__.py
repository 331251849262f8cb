"""Step 2: every block of the space, distilled on the workers, one record a block."""
