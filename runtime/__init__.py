"""Processes and files: what a program needs before it has a model."""
