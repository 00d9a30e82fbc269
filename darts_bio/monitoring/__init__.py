"""Where numbers and figures go: console, metrics.jsonl, TensorBoard. A sink: nothing here is read back by a run."""
