"""The report: one model (JSON is the truth), several views of it."""
