"""The command line of ``slmc``: parse options, call, print.

Read ``cli`` (finds the subcommand, turns errors into two lines), ``stage_command`` (the command of
a stage, made from its config by ``options``), ``inputs`` and ``running`` (the artefacts in and
out), ``console`` (results on stdout, everything else on stderr). The other modules are one command
each. Nothing imports from here.
"""

HELP_OPTIONS = ("-h", "--help")
"""What asks for help, of every command and group."""
