"""`python -m donna_ray` is `donna`."""

from donna_ray.cli.main import main

main()
