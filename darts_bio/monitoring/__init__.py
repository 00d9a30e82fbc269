"""Where numbers and figures go: console, metrics.jsonl, TensorBoard. A sink: no result depends on
what lies there.
"""
