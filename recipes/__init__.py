"""The recipes that ship with slmc; data only."""
