"""Monitoring: shows a run on the console and in TensorBoard; no result depends on it."""
