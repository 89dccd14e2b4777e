"""The fault-injection suite: real processes, killed and starved at random instants, and what became of their runs.

`zygote` and `processes` start trainers and look for what they leave behind; `scenarios` lists what is trained;
`kills` and `harm` do the harm; in `environments` they fail by themselves (`flaky`); `runs` compares a run with the one
that was left in peace; `soak` watches memory; `page` tells. `python -m faults --help` (or `make faults`) runs it;
`tests/test_faults.py` runs a little of it.
"""
