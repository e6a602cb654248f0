"""Structured shapes: sets of parts, each with a box and a code. All of it, from meshes to the measures."""
