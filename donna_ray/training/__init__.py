"""One network, or many blocks, trained: the loop, its schedule, its checkpoints. Plain torch."""
