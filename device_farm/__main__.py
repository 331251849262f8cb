"""`python -m device_farm` is the command `device-farm`."""

from device_farm.cli import main

if __name__ == "__main__":
    main()
