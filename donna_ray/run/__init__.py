"""One run: its folder, its Ray, its steps, and where its processes meet."""
