"""Step 1: the reference network, a timm model cut into stem, stages and head."""
