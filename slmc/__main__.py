"""``python -m slmc``."""

from slmc.cli import main

if __name__ == "__main__":
    main()
