"""The bundle: what is shipped to a board. The reader is part of run.pyz, the writer stays on the host."""
