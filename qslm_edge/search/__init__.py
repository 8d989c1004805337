"""The search for a setting. Start at run.py; each method has its file: budgeted.py, front.py (pareto), tiers.py."""
