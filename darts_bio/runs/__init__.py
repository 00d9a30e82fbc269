"""Runs: from a configuration to a result. A run writes all of its folder; monitors only show it."""
