"""Processes, files and command lines: what a program needs before it has a model."""
