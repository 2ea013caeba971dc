"""The subcommands of ``slmc``, a module each: parse, call, print."""

HELP_OPTIONS = ("-h", "--help")
"""What asks for help, of every command and group."""
