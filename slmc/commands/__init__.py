"""The subcommands of ``slmc``, a module each: parse, call, print."""
