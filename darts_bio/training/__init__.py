"""Training: the loop, what a step of a search or retraining is, and the folder that a run leaves.

engine.py         the loop around a `Task`; listeners.py who hears of it, meters.py the numbers
search.py         the task of a search: alpha and w
retrain.py        the task of retraining a genotype's network from scratch
optim.py          the optimizer of w; schedules.py its learning rate
hebbian.py        layers that learn features without labels, one after the other
adversarial.py    examples that are made at each step
graphs.py         steps recorded as CUDA graphs
parallel.py       what several processes bring together
run_folder.py     a run's folder and checkpoint; trained.py networks read from one
run_list.py       runs listed from their folders; run_summary.py what is told of one, from
                  records.py its numbers and status.py how it stands
"""
