"""`greenroom bench`: how fast greenroom is on this machine, as ratios within one run. Suites and their table: `suites`.

Imports nothing by itself: worker processes and peers pass through here to `synthetic` and must not load torch.
"""
