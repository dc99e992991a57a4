"""Reference networks, data sets and training programs built on :mod:`pairloss`."""
