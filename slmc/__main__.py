"""``python -m slmc``."""

from slmc.commands.cli import main

if __name__ == "__main__":
    main()
