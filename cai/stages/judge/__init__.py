"""judge: every principle that applies, in both orders; one decision each.

The verdict is only ever read from the probabilities of offered tokens, never from running text. Modes:

    logprob       probability of the letters A and B under every principle (Bai et al. 2022, §4.1)   letters.py
    cot           reasons first, then the letters in the same conversation; several samples averaged  reasons.py
    score         each answer by itself on a scale of single tokens, 1 to 9; expected value           grades.py
    rubric        weighted yes/no propositions on each answer                                         grades.py
    reward_model  the difference of two rewards                                                       rewards.py
    panel         several judges together, by mean or majority                                        panel.py
    check         decided by code, without a model                                                    decide.py

Read `decide.py` first. A probability is mapped back from the letter to the source arm in `readings.py` and nowhere
else; `canaries.py` looks for attempts to steer the judge from inside the pair.
"""

from __future__ import annotations

from cai.stages.judge.bench import OPTIONS, ORDERS, Bench, Case, Seat, text_id_of
from cai.stages.judge.decide import by_check, judge
from cai.stages.judge.readings import Reading
from cai.stages.judge.reread import reread

__all__ = ["OPTIONS", "ORDERS", "Bench", "Case", "Reading", "Seat", "by_check", "judge", "reread", "text_id_of"]
