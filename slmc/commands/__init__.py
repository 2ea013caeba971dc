"""The command line of ``slmc``: parse options, call, print.

Read ``cli`` (finds the subcommand, prints errors in two lines), ``stage_command`` (the commands of
single stages, whose options ``options`` makes from the configs), ``inputs`` and ``running`` (input
artefacts and results), ``console`` (results on stdout, everything else on stderr). The other
modules have one command each. Nothing imports from here.
"""

HELP_OPTIONS = ("-h", "--help")
"""The help options of every command and group."""
