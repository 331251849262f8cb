"""The kinds of device that come with the farm, one module each."""
