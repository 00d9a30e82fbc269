"""Training: the loop, and what a step of a search or of a retraining is.

engine.py         the loop around a `Task`; listeners.py who hears of it, meters.py the numbers
search.py         the task of a search: alpha and w; method.py its strategy and regularizers,
                  individuals.py the measures of a population, place.py where it stands among stages,
                  stages.py what a stage takes over from the one before
retrain.py        the task of retraining a genotype's network from scratch
optim.py          the optimizer of w; schedules.py its learning rate
hebbian.py        layers that learn features without labels, one after the other
adversarial.py    examples that are made at each step
graphs.py         steps recorded as CUDA graphs
parallel.py       what several processes bring together
trained.py        a network from its run or its export; exported.py what an export holds,
                  provenance.py where its weights come from
"""
