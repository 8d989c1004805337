"""The steps of a deployment: deploy.py strings them together, the command line offers each."""
