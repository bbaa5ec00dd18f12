"""Measures the other rooms and reports on them; nothing imports it."""
