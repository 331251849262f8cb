"""Files that outlive a crash: on any fsspec path, atomic, checked when they are read."""
