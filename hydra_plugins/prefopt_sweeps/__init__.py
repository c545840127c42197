"""Hydra looks for plug-ins in this namespace package and nowhere else. Nothing heavy is imported here: every command
scans it."""
