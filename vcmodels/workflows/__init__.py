"""Chains of whole processes: the folds of a cross-validation, scripts for a cluster."""
