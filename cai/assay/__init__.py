"""What a judge is worth, measured before it judges.

`probes.py` and `check.py` try it on small shipped cases whose right verdict is known or must not change (`cai judge
check`); `bench.py` compares it with people's labels (`cai judge bench`). Both ask through the same stage that judges in
a run, so what is measured is what decides.
"""

from __future__ import annotations
