"""Training: the loop, and what a step of a search or of a retraining is.

engine.py         the loop around a `Task`; listeners.py who hears of it, meters.py the numbers
search.py         the task of a search: alpha and w; method.py what it searches with,
                  individuals.py what populations are worth, stages.py what a stage takes over
retrain.py        the task of retraining a genotype's network from scratch
optim.py          the optimizer of w; schedules.py its learning rate
hebbian.py        layers that learn features without labels, one after the other
adversarial.py    examples that are made at each step
graphs.py         steps recorded as CUDA graphs
parallel.py       what several processes bring together
trained.py        a network from the checkpoint of its training
"""
