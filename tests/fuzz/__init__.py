"""Fuzz targets: each takes any bytes, and raises on what must never happen. ``make fuzz`` runs them."""
