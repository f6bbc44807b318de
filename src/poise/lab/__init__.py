"""Measurements of poise itself: value estimates in `study`, training side by side in `compare`."""
