"""Devices shared by many: found, leased, watched, and their measurements kept."""
