"""Samples compared with data: FID and the other numbers."""
