"""The tiered search: constraints, sensitivity, tiers, selection, journal. Start reading at tiers.py, then run.py."""
